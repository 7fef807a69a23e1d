"""Errors about a corpus's input."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from storage.errors import UserError

_MOST_SHOWN = 30


class RowDropped(Exception):
    """A row without a document; `reason` is the key under which it is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, short enough for another message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def failing_as(what: str, fix: str) -> Iterator[None]:
    """Turn any error inside into a UserError '<what>: <first line of the error>; <fix>'.

    Only for calls into file systems and readers: their errors have no common type (OSError, EOFError, zlib.error,
    ArrowInvalid, botocore's own, …), hence the broad `except`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {one_line(error)}; {fix}") from error


def require_columns(where: str, wanted: Iterable[str], present: Iterable[str]) -> None:
    """Raise UserError if `where` lacks some of the `wanted` columns; it names them and those that are present."""
    present = list(present)
    missing = [column for column in wanted if column not in present]
    if missing:
        shown = [*map(repr, present[:_MOST_SHOWN]), *(["…"] if len(present) > _MOST_SHOWN else [])]
        raise UserError(
            f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(shown) or 'none'}. "
            "Set corpus.text (a column or a template of them), corpus.messages or corpus.id to one of these, or leave "
            "out files that have no texts with corpus.source.exclude."
        )


class NamedFile(Protocol):
    """A file that a message can name."""

    @property
    def url(self) -> str: ...


def naming_file(file: NamedFile) -> AbstractContextManager[None]:
    """Turn any error of reading a file into a UserError that names it."""
    return failing_as(f"cannot read {file.url}", "fix or remove the file, or exclude it with corpus.source.exclude")
