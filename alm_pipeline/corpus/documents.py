"""Documents: the text or conversation of each row of a source.

Rows without a document are counted by reason: `invalid_json` (a line that is not a JSON object), `invalid_utf8` (also a
string with a lone surrogate), `missing_column`, `missing_id` (a null or empty id), `not_text` (a value that is not a
string, a conversation that is not a list of roles and contents), `empty` (only white space).
"""

import json
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alm_pipeline.config import CorpusConfig
from alm_pipeline.corpus.conversation import Messages
from alm_pipeline.corpus.errors import RowDropped
from alm_pipeline.corpus.files import SourceRow
from alm_pipeline.corpus.sources import read_rows
from storage.errors import UserError


@dataclass(frozen=True, slots=True)
class Document:
    """A row's text or its conversation; exactly one of `text` and `messages` is set, and it is not blank.

    A message has a `role` and a `content`, both strings, and any other JSON values of its row; a message that only
    calls tools has empty content.
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


def read_documents(config: CorpusConfig, dropped: Counter[str]) -> Iterator[Document]:
    """Yield the source's documents, in an order that never changes; counts rows without one in `dropped`.

    Raises UserError if the source cannot be read, or lacks a column that the configuration names.
    """
    content = config.messages or _parse_template(config.text)
    fields = _Fields(content, config.id)
    for row_id, row in read_rows(config.source, fields.columns, dropped):
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
    if number_is_text and isinstance(value, int | float):
        return str(value)
    raise RowDropped("not_text")


def _id_value(value: Any) -> str:
    if value is None or value == "":
        raise RowDropped("missing_id")
    _check_unicode(str(value))
    return str(value)


def _messages_value(value: Any) -> Messages:
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise RowDropped("not_text")
    # Parquet gives each message every key in the file; a null key is one that this message does not have
    messages = [{key: item for key, item in message.items() if item is not None} for message in value]
    messages = [{**message, "content": message.get("content", "")} for message in messages]
    try:
        _check_unicode(json.dumps(messages, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise RowDropped("not_text") from error
    if not any(message["content"].strip() for message in messages):
        raise RowDropped("empty")
    return messages


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
