"""The command that registers deployments, and the option --version."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal.console import out, user_errors

deploy_commands = typer.Typer()


@deploy_commands.command()
def deploy(
    pool: Annotated[str, typer.Option(help="The work pool for the deployments that need no GPU.")] = "alm",
    gpu_pool: Annotated[
        str, typer.Option(help="The work pool for the deployments that score, train or evaluate.")
    ] = "gpu",
    folder: Annotated[
        Path | None,
        typer.Option(help="The working folder of the runs, on the workers' machines. Default: the current folder."),
    ] = None,
) -> None:
    """Register all deployments with the Prefect server, so that workers can run them.

    It needs a server (PREFECT_API_URL). Work pools that do not exist are created, with the type process.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect reads it when it is imported
    from flows.deploy import deploy as register

    with user_errors():
        names = register({"alm": pool, "gpu": gpu_pool}, (folder or Path()).absolute())
        out.print_line(f"{len(names)} deployments: {', '.join(names)}")
        out.print_line(f"Start a worker for each pool: prefect worker start --pool {pool}")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from alm_pipeline import __version__

        out.print_line(f"alm-pipeline {__version__}")
        raise typer.Exit


def version_option(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The options of `alm` itself, before any command."""
