"""Rows of files, and the columns that a file must have."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from alm_pipeline.corpus.files.errors import NamedFile, require_columns

SourceRow = dict[str, Any]
"""A row's values by column."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to read: those that must be there, and those that are read where a file has them.

    With `every`, all columns of each file are read.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    every: bool = False

    def among(self, present: Sequence[str]) -> list[str]:
        """Return the columns to read of a file with these columns; `every` leaves out names that it has twice."""
        if self.every:
            return [name for name in present if present.count(name) == 1]
        return [*self.required, *(name for name in self.optional if name in present)]


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null, at every depth: for rows whose types are not known."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


ROWS_BEFORE_A_COLUMN = 100_000
_MOST_SHOWN = 30


class ColumnsSeen:
    """The columns that a file's rows have had: each row may have others, but a wanted one must be in some row."""

    def __init__(self, file: NamedFile, wanted: Iterable[str]) -> None:
        self._file, self._wanted = file, tuple(wanted)
        self._missing = set(self._wanted)
        self._seen: dict[str, None] = {}
        self._rows = 0

    def add(self, row: SourceRow) -> None:
        """Note a row's columns. Raises UserError if a wanted column was in none of very many rows."""
        if not self._missing:
            return
        self._rows += 1
        self._missing.difference_update(row)
        if len(self._seen) < _MOST_SHOWN:
            self._seen.update(dict.fromkeys(row))
        if self._rows >= ROWS_BEFORE_A_COLUMN:
            self.require()

    def require(self) -> None:
        """Raise UserError if there were rows, and a wanted column was in none."""
        if self._missing and self._rows:
            found = [column for column in self._wanted if column not in self._missing]
            require_columns(self._file.url, self._wanted, dict.fromkeys([*self._seen, *found]))
