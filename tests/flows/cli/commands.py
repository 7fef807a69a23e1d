"""Every command of `alm`, by name."""

from collections.abc import Callable, Iterator
from typing import Any

import typer


def every_command(of: typer.Typer) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the commands of an application and of those in it, with the functions that they call."""
    for command in of.registered_commands:
        assert command.callback
        yield command.name or command.callback.__name__.replace("_", "-"), command.callback
    for group in of.registered_groups:
        assert group.typer_instance
        yield from every_command(group.typer_instance)
