"""Documents: the text or conversation of each row of a source.

Rows without a document are counted by reason: `invalid_json` (a line that is not a JSON object), `invalid_utf8` (also a
string with a lone surrogate), `repeated_key` (an object with a key twice), `missing_column`, `missing_id` (an id that
is null, empty, NaN or infinite), `not_text` (a value that is not a string, a conversation that is not a list of roles
and contents, a text file with a zero byte), `unknown_role:NAME` (of a ShareGPT turn), `content_part:TYPE` (a part of a
content that is an image, a sound, …), `not_a_tool_call` (a ShareGPT `function_call` that is not JSON of a call),
`another_kind_of_prompt` (prompts are texts in one row and messages in another), `not_finite` (a call of a tool with NaN
or an infinite number), `value_out_of_range` (a time after the year 9999, …), `nested_too_deeply`, `empty` (only white
space; of a prompt with a completion, the completion).
"""

import math
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, assert_never

from alm_pipeline.config import CorpusConfig
from alm_pipeline.corpus.conversation import Messages
from alm_pipeline.corpus.files.errors import RowDropped
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from alm_pipeline.corpus.formats.layouts import MESSAGES_COLUMN, SHAREGPT_COLUMN, resolve_layout
from alm_pipeline.corpus.formats.messages import (
    alpaca_messages,
    check_unicode,
    listed,
    openai_messages,
    sharegpt_messages,
)
from alm_pipeline.corpus.sources import OpenSource, open_source
from storage.errors import UserError


@dataclass(frozen=True, slots=True)
class Document:
    """A row's text or its conversation; exactly one of `text` and `messages` is set, and it is not blank.

    A message has a `role` and a `content`, both strings, and any other JSON values of its row; a message that only
    calls tools has empty content. Of what JSON cannot hold, times and decimals are text, and the rest is left out.
    """

    id: str
    text: str | None
    messages: Messages | None
    completion_at: int | None = None
    """Where the completion begins that alone is learned: a byte of the text, or a message; None if all is learned."""


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
class _RowReader:
    """The columns that documents are read from, and what makes a document of an id and a row, or raises RowDropped."""

    columns: Columns
    parse: Callable[[str, SourceRow], Document]

    @classmethod
    def of(cls, config: CorpusConfig) -> "_RowReader":
        """Return the reader of a corpus whose layout is resolved."""
        match config.layout:
            case "text":
                template = _parse_template(config.text)
                return cls(Columns(tuple(dict.fromkeys(template.columns))), partial(_text_document, template))
            case "messages":
                column = config.messages or MESSAGES_COLUMN
                return cls(
                    Columns((column,)), lambda id_, row: Document(id_, None, openai_messages(_value(row, column)))
                )
            case "sharegpt":
                return cls._of_sharegpt(config.messages or SHAREGPT_COLUMN)
            case "alpaca":
                columns = Columns(("instruction", "output"), ("input", "system", "history"))
                return cls(columns, lambda id_, row: Document(id_, None, alpaca_messages(_required(columns, row))))
            case "prompt_completion":
                return cls(Columns(("prompt", "completion")), _PairParser())
            case "auto":
                raise AssertionError("the layout is not resolved")
        assert_never(config.layout)

    @classmethod
    def _of_sharegpt(cls, column: str) -> "_RowReader":
        def parse(id_: str, row: SourceRow) -> Document:
            return Document(id_, None, sharegpt_messages(_value(row, column), row.get("system")))

        return cls(Columns((column,), ("system",)), parse)


class _PairParser:
    """Makes documents of prompts with completions: all texts, or all conversations, as the first one is."""

    def __init__(self) -> None:
        self._is_text: bool | None = None

    def __call__(self, id_: str, row: SourceRow) -> Document:
        prompt, completion = _value(row, "prompt"), _value(row, "completion")
        is_text = isinstance(prompt, str | bytes)
        document = self._text(id_, prompt, completion) if is_text else self._conversation(id_, prompt, completion)
        if self._is_text is None:
            self._is_text = is_text
        elif self._is_text != is_text:
            raise RowDropped("another_kind_of_prompt")
        return document

    def _text(self, id_: str, prompt: Any, completion: Any) -> Document:
        texts = [_text_value(value, number_is_text=False) for value in (prompt, completion)]
        check_unicode("".join(texts))
        if not texts[1].strip():
            raise RowDropped("empty")
        return Document(id_, "".join(texts), None, completion_at=len(texts[0].encode()))

    def _conversation(self, id_: str, prompt: Any, completion: Any) -> Document:
        # TRL's completions are lists; some sets have the one message
        answers = openai_messages([completion] if isinstance(completion, dict) and "role" in completion else completion)
        question = listed(prompt)
        return Document(id_, None, openai_messages([*question, *answers]), completion_at=len(question))


def _text_document(template: _Template, id_: str, row: SourceRow) -> Document:
    text = template.fill(row)
    check_unicode(text)
    if not text.strip():
        raise RowDropped("empty")
    return Document(id_, text, None)


def _required(columns: Columns, row: SourceRow) -> SourceRow:
    for column in columns.required:
        _value(row, column)
    return row


def read_documents(config: CorpusConfig, dropped: Counter[str], source: OpenSource | None = None) -> Iterator[Document]:
    """Yield the source's documents, in an order that never changes; counts rows without one in `dropped`.

    `source` is the configuration's, if it is open already. Raises UserError if it cannot be read, lacks a column
    that the configuration names, or has rows of no known layout.
    """
    source = source or open_source(config.source)
    reader = _RowReader.of(resolve_layout(config, source))
    id_column = [config.id] if config.id else []
    columns = replace(reader.columns, required=tuple(dict.fromkeys([*reader.columns.required, *id_column])))
    for row_id, row in source.rows(columns, dropped):
        try:
            document_id = row_id if config.id is None else _id_value(_value(row, config.id))
            document = reader.parse(document_id, row)
        except RowDropped as drop:
            drop.count_in(dropped)
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
    check_unicode(str(value))
    return str(value)
