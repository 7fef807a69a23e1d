"""The columns of a corpus that has not been configured yet, and which of them its texts or conversations are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from alm_pipeline.config import FilesSource, Source
from alm_pipeline.corpus.files.errors import naming_file
from alm_pipeline.corpus.files.listing import CorpusFile, list_files
from alm_pipeline.corpus.files.readers import READERS
from alm_pipeline.corpus.files.rows import SourceRow

_ROWS = 20
_TEXT = "text"
_PAIRS = (
    ("question", "answer"),
    ("question", "solution"),
    ("problem", "solution"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("input", "output"),
    ("title", "body"),
)
"""Columns that make a text together."""


def first_rows(source: Source) -> list[SourceRow]:
    """Return the first rows of a source's first file, with all their columns.

    Raises UserError if there is no file that can be read.
    """
    assert isinstance(source, FilesSource)
    file = list_files(source).files[0]
    rows = READERS[file.format](file, _column_names(file), Counter())
    return [row for _, row in islice(rows, _ROWS)]


def _column_names(file: CorpusFile) -> tuple[str, ...]:
    """Return the columns that have to be asked for; other formats have all of them in each row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.format not in ("parquet", "arrow"):
        return ()
    with naming_file(file), file.fs.open(file.path, "rb") as stream:
        if file.format == "parquet":
            return tuple(pq.read_schema(stream).names)
        try:
            return tuple(pa.ipc.open_file(stream).schema.names)
        except pa.ArrowInvalid:
            stream.seek(0)
            return tuple(pa.ipc.open_stream(stream).schema.names)


def column_kinds(rows: Sequence[SourceRow]) -> dict[str, str]:
    """Return what each column of the rows holds, in a word or two."""
    return {name: _kind(values) for name, values in _values_by_column(rows).items()}


def proposed_settings(rows: Sequence[SourceRow]) -> dict[str, str]:
    """Return the settings of `corpus` that read the rows: `messages`, or `text`, a column or a template of columns.

    {} if no column has texts or conversations.
    """
    columns = _values_by_column(rows)
    chats = [name for name, values in columns.items() if _kind(values) == "conversations"]
    texts = {name: values for name, values in columns.items() if _kind(values) == "texts"}
    if chats:
        return {"messages": chats[0]}
    if _TEXT in texts:
        return {"text": _TEXT}
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
    if all(isinstance(value, list) and value and all(map(_is_message, value)) for value in values):
        return "conversations"
    return "numbers" if all(isinstance(value, int | float) for value in values) else "other values"


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str)
