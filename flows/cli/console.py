"""Where the commands print, and how they report mistakes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from storage.errors import UserError

# a file or a pipe has no width of its own
out = Console(width=None if Console().is_terminal else 200)
err = Console(stderr=True)


def write_picture(file: Path, content: bytes) -> None:
    """Write the file of the option `--picture`. Raises UserError if that fails."""
    try:
        file.write_bytes(content)
    except OSError as error:
        raise UserError(f"--picture {file}: can't be written ({error.strerror})") from error


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Print errors that the user can fix without a traceback, and exit with 1."""
    try:
        yield
    except UserError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
