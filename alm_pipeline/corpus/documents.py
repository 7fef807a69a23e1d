"""Documents: the text or conversation of each row of a source.

Rows without a document are counted by reason: `invalid_json` (a line that is not a JSON object), `invalid_utf8` (also a
string with a lone surrogate), `repeated_key` (an object with a key twice), `missing_column`, `missing_id` (an id that
is null, empty, NaN or infinite), `not_text` (a value that is not a string, a conversation that is not a list of roles
and contents, a text file with a zero byte), `not_finite` (a call of a tool with NaN or an infinite number),
`value_out_of_range` (a time after the year 9999, …), `nested_too_deeply`, `empty` (only white space).
"""

import json
import math
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from alm_pipeline.config import CorpusConfig
from alm_pipeline.corpus.conversation import Messages
from alm_pipeline.corpus.files.errors import RowDropped
from alm_pipeline.corpus.files.rows import SourceRow
from alm_pipeline.corpus.sources import OpenSource, open_source
from storage.errors import UserError

_MAX_DEPTH = 100
"""How deep the values of a message may be nested: every later stage reads them with a limited stack."""


@dataclass(frozen=True, slots=True)
class Document:
    """A row's text or its conversation; exactly one of `text` and `messages` is set, and it is not blank.

    A message has a `role` and a `content`, both strings, and any other JSON values of its row; a message that only
    calls tools has empty content. Of what JSON cannot hold, times and decimals are text, and the rest is left out.
    """

    id: str
    text: str | None
    messages: Messages | None


@dataclass(frozen=True, slots=True)
class _Template:
    """Pieces of fixed text, each followed by a column's value (the last perhaps by None)."""

    parts: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> list[str]:
        return [column for _, column in self.parts if column is not None]

    def fill(self, row: SourceRow) -> str:
        # a number within a sentence is text; a column of only numbers is a mistake
        number_is_text = len(self.parts) > 1 or bool(self.parts[0][0])
        return "".join(
            fixed + ("" if column is None else _text_value(_value(row, column), number_is_text))
            for fixed, column in self.parts
        )


@dataclass(frozen=True, slots=True)
class _Fields:
    """The columns that a document is read from; `content` is a template or the column with the messages."""

    content: _Template | str
    id: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        content = [self.content] if isinstance(self.content, str) else self.content.columns
        return tuple(dict.fromkeys([*content, *([self.id] if self.id else [])]))

    def document(self, row_id: str, row: SourceRow) -> Document:
        """Return the row's document. Raises RowDropped if it has none."""
        document_id = row_id if self.id is None else _id_value(_value(row, self.id))
        if isinstance(self.content, str):
            return Document(document_id, None, _messages_value(_value(row, self.content)))
        text = self.content.fill(row)
        _check_unicode(text)
        if not text.strip():
            raise RowDropped("empty")
        return Document(document_id, text, None)


def read_documents(config: CorpusConfig, dropped: Counter[str], source: OpenSource | None = None) -> Iterator[Document]:
    """Yield the source's documents, in an order that never changes; counts rows without one in `dropped`.

    `source` is the configuration's, if it is open already. Raises UserError if it cannot be read, or lacks a column
    that the configuration names.
    """
    content = config.messages or _parse_template(config.text)
    fields = _Fields(content, config.id)
    source = source or open_source(config.source)
    for row_id, row in source.rows(fields.columns, dropped):
        try:
            document = fields.document(row_id, row)
        except RowDropped as drop:
            dropped[drop.reason] += 1
        else:
            yield document


def _parse_template(text: str) -> _Template:
    if "{" not in text:
        return _Template((("", text),))
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"corpus.text {text!r} is not a valid template: {error}; write {{{{ for a brace") from error
    for _, column, form, conversion in parsed:
        if column == "" or form or conversion:
            raise UserError(f"corpus.text {text!r}: each field must be a column's name in braces")
    template = _Template(tuple((fixed, column) for fixed, column, _, _ in parsed))
    if not template.columns:
        raise UserError(f"corpus.text {text!r} names no column; write one in braces, such as {{text}}")
    return template


def _value(row: SourceRow, column: str) -> Any:
    if column not in row:
        raise RowDropped("missing_column")
    return row[column]


def _text_value(value: Any, number_is_text: bool) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RowDropped("invalid_utf8") from error
    if isinstance(value, str):
        return value
    if number_is_text and isinstance(value, int | float) and math.isfinite(value):
        return str(value)
    raise RowDropped("not_text")


def _id_value(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):  # NaN is pandas' null
        raise RowDropped("missing_id")
    _check_unicode(str(value))
    return str(value)


def _messages_value(value: Any) -> Messages:
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise RowDropped("not_text")
    # in a message itself, a null key is one that it does not have
    present = [{key: item for key, item in message.items() if item is not None} for message in value]
    messages = [_json_value({**message, "content": message.get("content", "")}) for message in present]
    if not _is_finite([message.get("tool_calls") for message in present]):
        raise RowDropped("not_finite")
    try:
        _check_unicode(json.dumps(messages, ensure_ascii=False, allow_nan=False))
    except ValueError as error:
        raise RowDropped("not_text") from error
    if not any(message["content"].strip() for message in messages):
        raise RowDropped("empty")
    return messages


def _json_value(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can hold it, without the keys of what it can't; None if it can't hold the value."""
    if depth > _MAX_DEPTH:
        raise RowDropped("nested_too_deeply")
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case date() | time():
            return value.isoformat()
        case Decimal() | timedelta() | UUID():
            return str(value)
        case dict():
            held = {str(key): _json_value(item, depth + 1) for key, item in value.items()}
            return {key: item for key, item in held.items() if item is not None or value.get(key) is None}
        case list():
            return [_json_value(item, depth + 1) for item in value]
    return None


def _is_finite(value: Any) -> bool:
    """Return whether a value holds no NaN or infinite number at any depth."""
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float | Decimal) or math.isfinite(value)


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    return isinstance(content, str) or (content is None and bool(value.get("tool_calls")))


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowDropped("invalid_utf8") from error
