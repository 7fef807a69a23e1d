"""Errors about a corpus's input."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from storage.errors import UserError, cause, user_error

_MOST_SHOWN = 30


class RowDropped(Exception):
    """A row without a document; `reason` is the key under which it is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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


@contextmanager
def naming_file(file: NamedFile) -> Iterator[None]:
    """Turn any error of reading a file into a UserError that names it, as `user_error` does."""
    subject, fix = f"cannot read {file.url}", "fix or remove the file, or exclude it with corpus.source.exclude"
    with user_error(subject, fix):
        try:
            yield
        except MemoryError as error:  # not temporary: a damaged file gives lengths that no memory holds
            raise UserError(f"{subject}: {cause(error)}; {fix}") from error
