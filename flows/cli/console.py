"""Where the commands print, and how they tell mistakes."""

import contextlib
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.markup import escape

from storage.errors import UserError

# a file or a pipe has no width to keep to
out = Console(width=None if Console().is_terminal else 200)
err = Console(stderr=True)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What the user can mend is told without a traceback."""
    try:
        yield
    except UserError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
