"""Errors about a corpus's input."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from storage.errors import UserError, cause, user_error

_MOST_SHOWN = 30
_MOST_NAMES = 20
_PLAIN_NAME = re.compile(r"[\w.-]{1,32}")


class RowDropped(Exception):
    """A row without a document; `reason` is the key under which it is counted, `name` what of the row is meant."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.reason, self.name = reason, name

    def count_in(self, dropped: Counter[str]) -> None:
        """Count the row, as `reason:name` for the first names: rows may have any number of them."""
        key = f"{self.reason}:{self.name}" if _PLAIN_NAME.fullmatch(self.name) else self.reason
        others = sum(name.startswith(f"{self.reason}:") for name in dropped)
        dropped[key if key in dropped or others < _MOST_NAMES else self.reason] += 1


class MissingColumn(UserError):
    """A column is missing; the fix in its message is about a run's settings."""

    problem: str
    """the message without its fix"""

    @classmethod
    def of(cls, problem: str, fix: str) -> "MissingColumn":
        error = cls(f"{problem} {fix}")
        error.problem = problem
        return error


@contextmanager
def columns_set_by(fix: str) -> Iterator[None]:
    """Give a missing column another fix: that of a corpus which is not the run's, and has none of its settings."""
    try:
        yield
    except MissingColumn as error:
        raise UserError(f"{error.problem} {fix}") from error


BY_TEXT_OPTION = "Set --text (a flow's parameter `text`) to one of these, or to a template of them."


def require_columns(where: str, wanted: Iterable[str], present: Iterable[str]) -> None:
    """Raise MissingColumn if `where` lacks some of the `wanted` columns; it names them and those that are present."""
    present = list(present)
    missing = [column for column in wanted if column not in present]
    if missing:
        shown = [*map(repr, present[:_MOST_SHOWN]), *(["…"] if len(present) > _MOST_SHOWN else [])]
        near = [name for column in missing for name in difflib.get_close_matches(column, present, n=1)]
        raise MissingColumn.of(
            f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(shown) or 'none'}."
            f"{f' Was {near[0]!r} meant?' if near else ''}",
            "Set corpus.text (a column or a template of them), corpus.messages or corpus.id to one of these, or leave "
            "out files that have no texts with corpus.source.exclude.",
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
