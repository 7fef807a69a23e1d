"""Where the commands print, and how they report mistakes.

Everything that is printed goes through `InertConsole`: names, ids and texts are untrusted, so no string is ever taken
for markup, and every one is made visible. Styles are set by `Text`.

A command that prints a table also takes `--json` (`JsonOption`): it makes its rows as plain values once, which
`print_rows` shows as a table, or `write_json` as one document. A test runs every such command both ways.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from alm_pipeline.runtime.streams import writing
from flows.terminal.options import corrected
from storage.errors import UserError, cause, is_temporary
from storage.printed.inert import generated, json_text, one_line, visible
from storage.printed.records import make_output_inert

_PIPE_WIDTH = 200
"""a file or a pipe has no width of its own"""
_LEAST_WIDTH = 20
"""of a column of long names: a table with narrower ones is printed as lines"""
_CLICK_ERROR: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead, with plain numbers; all else goes to stderr.")
]


def show_text(value: object) -> str:
    """Show a value in a table; nothing for None."""
    return "" if value is None else str(value)


def show_count(value: int | None) -> str:
    """Show a count as 1,234; nothing for None."""
    return "" if value is None else f"{value:,}"


def show_megabytes(value: int | None) -> str:
    """Show a number of bytes in megabytes; nothing for None."""
    return "" if value is None else f"{value / 1e6:,.2f}"


def show_quoted(values: Sequence[Any]) -> str:
    """Show texts one after the other, each in quotes."""
    return " ".join(map(repr, values))


def show_corpus(name: str | None) -> str:
    """Show the corpus of a cell: all of them for None."""
    return "all" if name is None else name


class Shown(NamedTuple):
    """How a table shows one of its rows' values: the value's key, the column's title, and its text."""

    key: str
    title: str
    text: Callable[[Any], str] = show_text


def used_columns(columns: Sequence[Shown], rows: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """Return the columns that have a value in some row."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


class InertConsole(Console):
    """A console that shows foreign text as it is, and that ends a command quietly when its output has gone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Make a text of a string: all strings that are printed come here, also those in tables and trees."""
        return super().render_str(visible(text), **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        with writing(self.file):  # type: ignore[arg-type]  # of rich's own type
            super().print(*objects, **settings)

    def on_broken_pipe(self) -> None:
        with writing(self.file):  # type: ignore[arg-type]
            raise BrokenPipeError

    def print_line(self, text: object) -> None:
        """Print a text without breaking its lines, so that names in it can be copied."""
        self.print(str(text), soft_wrap=True)

    def print_labeled(self, label: str, text: object) -> None:
        """Print a text after a red label."""
        self.print(Text.assemble((label, "bold red"), " ", visible(text)), soft_wrap=True)

    def write(self, text: str) -> None:
        """Write a text that is inert already, without styles."""
        with writing(self.file):  # type: ignore[arg-type]
            self.file.write(text)
            self.file.flush()

    def print_table(self, header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
        """Print a table; one that does not fit is printed as lines of names and values, so that nothing is cut off."""
        cells = [[one_line(cell) for cell in row] for row in rows]
        if not self._fits(header, cells):
            self._print_records(header, cells, title)
            return
        widths = _widths([list(header), *cells], self.width - 3 * len(header) - 1)
        columns = [Column(name, overflow="fold", width=width) for name, width in zip(header, widths, strict=True)]
        table = Table(*columns, title=None if title is None else Text(one_line(title)), title_justify="left")
        for row in cells:
            table.add_row(*map(Text, row))
        self.print(table)

    def _fits(self, header: Sequence[str], cells: Sequence[Sequence[str]]) -> bool:
        return sum(_needed_widths([list(header), *cells])) + 3 * len(header) + 1 <= self.width

    def fits(self, columns: Sequence[Shown], rows: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether `print_rows` prints these columns as a table, and not as lines."""
        cells = [[one_line(column.text(row.get(column.key))) for column in columns] for row in rows]
        return self._fits([column.title for column in columns], cells)

    def print_rows(self, columns: Sequence[Shown], rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
        """Print rows of plain values as a table with these columns; a value that a row lacks is left empty."""
        cells = [[column.text(row.get(column.key)) for column in columns] for row in rows]
        self.print_table([column.title for column in columns], cells, title)

    def write_json(self, content: Any) -> None:
        """Write plain values as one JSON document."""
        self.write(json_text(content, getattr(self.file, "encoding", None) or "utf-8") + "\n")

    def _print_records(self, header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
        if title:
            self.print_line(title)
        for row in rows:
            pairs = [(name, cell) for name, cell in zip(header, row, strict=True) if cell]
            self.print_line("\n".join(f"{name}: {cell}" if name else cell for name, cell in pairs) + "\n")


def _needed_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return what each column needs: its longest word, but of very long ones only a part, since they can be folded."""
    longest = (
        max((Text(word).cell_len for cell in column for word in cell.split()), default=0)
        for column in zip(*rows, strict=True)
    )
    return [min(width, _LEAST_WIDTH) for width in longest]


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return the columns' widths, together at most `room`: no word is broken that fits.

    Beyond what they need for that, the columns that lack least get what they lack, and the others share the rest.
    """
    widths = _needed_widths(rows)
    whole = [max(Text(cell).cell_len for cell in column) for column in zip(*rows, strict=True)]
    lacking = {number: whole[number] - width for number, width in enumerate(widths) if whole[number] > width}
    rest = room - sum(widths)
    for place, (number, lack) in enumerate(sorted(lacking.items(), key=lambda item: item[1])):
        added = min(lack, rest // (len(lacking) - place))
        widths[number] += added
        rest -= added
    return widths


out = InertConsole(width=None if Console().is_terminal else _PIPE_WIDTH)
err = InertConsole(stderr=True)


def write_generated(text: str) -> None:
    """Write a part of a model's text at once."""
    out.write(generated(text))


def write_picture(file: Path, content: bytes, option: str = "--picture") -> None:
    """Write the file that an option or argument names. Raises UserError if that fails."""
    try:
        file.write_bytes(content)
    except (OSError, ValueError) as error:  # a null character in its name
        raise UserError(f"{option} {file}: can't be written ({getattr(error, 'strerror', None) or error})") from error


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Print errors that the user can fix, and those of network, disk and memory, without a traceback; exit with 1."""
    try:
        yield
    except UserError as error:
        err.print_labeled("error:", error)
        raise typer.Exit(1) from error
    except Exception as error:
        if not (is_temporary(error) or isinstance(error, OSError)):
            raise
        subject = "".join(f"{note}: " for note in getattr(error, "__notes__", ())[:1])
        fix = "run the same command again once the network, the disk or memory allows it"
        err.print_labeled("error:", f"{subject}{cause(error)}; {fix}")
        raise typer.Exit(1) from error


class InertGroup(TyperGroup):
    """The commands; what their error messages repeat of the command line is made visible, with the nearest names."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        return _with_inert_errors(lambda: super(InertGroup, self).make_context(*arguments, **settings))

    def invoke(self, ctx: Any) -> Any:
        return _with_inert_errors(lambda: super(InertGroup, self).invoke(ctx))


def _with_inert_errors(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except _CLICK_ERROR as error:
        shown = cast(Any, error)
        shown.message, shown.possibilities = visible(corrected(shown)), None
        raise


def log_to_stderr() -> None:
    """Log the stages' lines to stderr; on a terminal, where bars show their progress, only warnings."""
    make_output_inert()
    logger = logging.getLogger("alm_pipeline")
    logger.propagate = False
    logger.setLevel("WARNING" if err.is_interactive else "INFO")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
