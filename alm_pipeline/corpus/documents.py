"""Documents: the text or conversation of each row of a source.

Rows without a document are counted by reason: `invalid_json` (a line that is not a JSON object), `invalid_utf8` (also a
string with a lone surrogate), `repeated_key` (an object with a key twice), `missing_column`, `missing_id` (an id that
is null, empty, NaN or infinite), `not_text` (a value that is not a string, a conversation that is not a list of roles
and contents, a text file with a zero byte), `unknown_role:NAME` (of a ShareGPT turn), `content_part:TYPE` (a part of a
content that is an image, a sound, …), `not_a_tool_call` (a ShareGPT `function_call` that is not JSON of a call),
`another_kind_of_prompt` (prompts are texts in one row and messages in another), `not_finite` (a call of a tool with NaN
or an infinite number), `not_tools` (a value of `corpus.tools` that is not functions), `not_template_arguments` (of
`corpus.template_arguments`, not a mapping), `template_argument:NAME` (a name in it that is not an argument),
`unknown_weight:VALUE` (a mark of a message that is neither 0 nor 1, by its key), `value_out_of_range` (a time after the
year 9999, …), `nested_too_deeply`, `empty` (only white space; of a prompt with a completion, the completion).
"""

import math
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, assert_never

from alm_pipeline.config import CorpusConfig
from alm_pipeline.conversations.sections import Messages
from alm_pipeline.corpus.files.errors import RowDropped
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from alm_pipeline.corpus.formats.layouts import (
    ARGUMENTS_COLUMN,
    MESSAGES_COLUMN,
    SHAREGPT_COLUMN,
    TOOLS_COLUMN,
    resolve_layout,
)
from alm_pipeline.corpus.formats.marks import MARKS, is_unlearned
from alm_pipeline.corpus.formats.messages import (
    alpaca_messages,
    listed,
    openai_messages,
    sharegpt_messages,
)
from alm_pipeline.corpus.formats.tools import Arguments, row_arguments, row_tools, template_arguments
from alm_pipeline.corpus.formats.values import check_unicode
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
    arguments: Arguments | None = None
    """What a conversation's chat template gets beside the messages, such as `tools`; None for nothing"""


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
                column, mark = config.messages or MESSAGES_COLUMN, config.marks
                return cls(
                    Columns((column,)), lambda id_, row: Document(id_, None, openai_messages(_value(row, column), mark))
                )
            case "sharegpt":
                return cls._of_sharegpt(config.messages or SHAREGPT_COLUMN, config.marks)
            case "alpaca":
                columns = Columns(("instruction", "output"), ("input", "system", "history"))
                return cls(columns, lambda id_, row: Document(id_, None, alpaca_messages(_required(columns, row))))
            case "prompt_completion":
                return cls(Columns(("prompt", "completion")), _PairParser(config.marks))
            case "auto":
                raise AssertionError("the layout is not resolved")
        assert_never(config.layout)

    @classmethod
    def _of_sharegpt(cls, column: str, mark: str | None) -> "_RowReader":
        def parse(id_: str, row: SourceRow) -> Document:
            return Document(id_, None, sharegpt_messages(_value(row, column), row.get("system"), mark))

        return cls(Columns((column,), ("system",)), parse)


class _PairParser:
    """Makes documents of prompts with completions: all texts, or all conversations, as the first one is."""

    def __init__(self, mark: str | None) -> None:
        self._mark = mark
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
        return Document(id_, None, openai_messages([*question, *answers], self._mark), completion_at=len(question))


def _text_document(template: _Template, id_: str, row: SourceRow) -> Document:
    text = template.fill(row)
    check_unicode(text)
    if not text.strip():
        raise RowDropped("empty")
    return Document(id_, text, None)


class _BesideMessages:
    """What rows have beside their conversations, for the chat template and as marks of messages.

    The first rows decide whether there is any; a later row that is the first to have some ends the reading.
    """

    def __init__(self, config: CorpusConfig) -> None:
        """`config` is that of a corpus whose layout is resolved."""
        self._config = config

    def with_columns(self, columns: Columns, required: Sequence[str]) -> Columns:
        """Return the columns to read, with others that are required; those of defaults are not."""
        named = [self._config.tools, self._config.template_arguments]
        required = [*required, *(name for name in named if name and name not in (TOOLS_COLUMN, ARGUMENTS_COLUMN))]
        return replace(
            columns,
            required=tuple(dict.fromkeys([*columns.required, *required])),
            optional=(*columns.optional, TOOLS_COLUMN, ARGUMENTS_COLUMN)
            if self._config.layout != "text"
            else columns.optional,
        )

    def added(self, document: Document, row: SourceRow) -> Document:
        """Return the document with the arguments of its row. Raises RowDropped if they can't be read."""
        if document.messages is None:
            return document
        config = self._config
        self._refuse_later(document, row)
        return replace(document, arguments=row_arguments(row, config.tools, config.template_arguments))

    def _refuse_later(self, document: Document, row: SourceRow) -> None:
        """Raise UserError for what the first rows did not have: it would be left out."""
        config = self._config
        late = {
            "tools": TOOLS_COLUMN if config.tools is None and _holds(row_tools, row.get(TOOLS_COLUMN)) else None,
            "template_arguments": ARGUMENTS_COLUMN
            if config.template_arguments is None and _holds(template_arguments, row.get(ARGUMENTS_COLUMN))
            else None,
            "marks": _unlearned_by(document.messages or []) if config.marks is None else None,
        }
        for setting, name in late.items():
            if name is not None:
                raise UserError(
                    f"row {document.id} of the corpus has {name!r}, which its first rows do not have: set "
                    f'corpus.{setting} to {name} to use it, or to "" to leave it out'
                )


def _holds(read: Callable[[Any], Any], value: Any) -> bool:
    try:
        return bool(value and read(value))
    except RowDropped:
        return False


def _unlearned_by(messages: Messages) -> str | None:
    """Return the key by which a message is marked as not learned; None if none is."""
    return next((key for message in messages for key in MARKS if is_unlearned(message.get(key))), None)


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
    config = resolve_layout(config, source)
    reader, beside = _RowReader.of(config), _BesideMessages(config)
    id_column = [config.id] if config.id else []
    for row_id, row in source.rows(beside.with_columns(reader.columns, id_column), dropped):
        try:
            document_id = row_id if config.id is None else _id_value(_value(row, config.id))
            document = beside.added(reader.parse(document_id, row), row)
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
