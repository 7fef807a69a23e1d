"""The columns of a corpus that has not been configured yet, and which of them its texts or conversations are."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alm_pipeline.config import Source
from alm_pipeline.corpus.files.rows import SourceRow
from alm_pipeline.corpus.formats.layouts import PAIRS, take_rows
from alm_pipeline.corpus.formats.messages import conversation_form
from alm_pipeline.corpus.sources import open_source

_ROWS = 20
_TEXT = "text"
_PAIRS = (
    ("question", "answer"),
    ("question", "solution"),
    ("problem", "solution"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("query", "response"),
    ("input", "output"),
    ("title", "body"),
)
"""Columns that make a text together."""


def first_rows(source: Source) -> list[SourceRow]:
    """Return the first rows of a source, with all their columns. Raises UserError if they can't be read."""
    return take_rows(open_source(source), _ROWS)


def column_kinds(rows: Sequence[SourceRow]) -> dict[str, str]:
    """Return what each column of the rows holds, in a word or two."""
    return {name: _kind(values) for name, values in _values_by_column(rows).items()}


def proposed_settings(rows: Sequence[SourceRow]) -> dict[str, str]:
    """Return the settings of `corpus` that read the rows: `messages`, or `text`, a column or a template of columns.

    {} if no column has texts or conversations, or if they have a layout that needs no settings.
    """
    columns = _values_by_column(rows)
    chats = [name for name, values in columns.items() if _kind(values) == "conversations"]
    texts = {name: values for name, values in columns.items() if _kind(values) == "texts"}
    if chats:
        return {"messages": chats[0]}
    if _TEXT in texts:
        return {"text": _TEXT}
    if any(first in columns and second in columns for first, second in PAIRS.values()):
        return {}
    for first, second in _PAIRS:
        if first in texts and second in texts:
            return {"text": f"{{{first}}}\n{{{second}}}"}
    longest = sorted(texts, key=lambda name: -sum(map(len, texts[name])))
    return {"text": longest[0]} if longest else {}


def _values_by_column(rows: Iterable[SourceRow]) -> Mapping[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).extend([] if value is None else [value])
    return columns


def _kind(values: Sequence[Any]) -> str:
    if not values:
        return "nothing"
    if all(isinstance(value, str) for value in values):
        return "texts"
    if all(map(conversation_form, values)):
        return "conversations"
    return "numbers" if all(isinstance(value, int | float) for value in values) else "other values"
