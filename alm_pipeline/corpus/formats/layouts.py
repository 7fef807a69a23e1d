"""What the rows of a corpus are: as configured, or recognized by the columns of the first rows.

A resolved configuration has a layout other than `auto`, and names the column of conversations. It, and not what was
configured, identifies the examples: a layout that was recognized and the same one that was set make one dataset.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, assert_never

from alm_pipeline.config import CorpusConfig, GeneratedSource, HubSource
from alm_pipeline.config.corpus import OF_CONVERSATIONS
from alm_pipeline.corpus.files.errors import MissingColumn, RowDropped
from alm_pipeline.corpus.files.rows import ROWS_BEFORE_A_COLUMN, Columns, SourceRow
from alm_pipeline.corpus.files.versions import HashedFiles
from alm_pipeline.corpus.formats.marks import MARKS, is_mark
from alm_pipeline.corpus.formats.messages import conversation_form, listed
from alm_pipeline.corpus.formats.tools import row_tools, template_arguments
from storage.errors import UserError


class Source(Protocol):
    """An open source, as `OpenSource` is."""

    @property
    def files(self) -> HashedFiles: ...

    def rows(self, columns: Columns, dropped: Counter[str], /) -> Iterator[tuple[str, SourceRow]]: ...


TEXT_COLUMN, MESSAGES_COLUMN, SHAREGPT_COLUMN = "text", "messages", "conversations"
TOOLS_COLUMN, ARGUMENTS_COLUMN = "tools", "chat_template_kwargs"
_CONVERSATION_COLUMNS = (MESSAGES_COLUMN, SHAREGPT_COLUMN, "conversation")
PAIRS: dict[str, tuple[str, str]] = {
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
_rows_of_hub: dict[HubSource, Sequence[SourceRow]] = {}
"""The first rows that this process has read of datasets of the Hub: it takes seconds, and each task asks again."""
_ROWS = 100
_MOST_SHOWN = 20
_NOT_USED = (*MARKS, "train_on_inputs", "train_on_input", "masked")
"""Marks of what is to be learned: all but one key of messages are not read."""

READ_AS: dict[str, str] = {
    "text": "plain texts",
    "messages": "conversations",
    "sharegpt": "conversations",
    "alpaca": "instruction, input and output as conversations",
    "prompt_completion": "only completions are learned",
}
"""What rows of each layout become."""


def resolve_layout(config: CorpusConfig, source: Source) -> CorpusConfig:
    """Return the configuration with its layout, and the column of conversations, filled in.

    `source` is the configuration's. Raises UserError if the first rows have no known layout.
    """
    match config.layout:
        case "messages":
            known = {"messages": config.messages or MESSAGES_COLUMN}
        case "sharegpt":
            known = {"messages": config.messages or SHAREGPT_COLUMN}
        case "text" | "alpaca" | "prompt_completion":
            known = {}
        case "auto":
            known = dict(_recognized(config, source))
        case _:
            assert_never(config.layout)
    resolved = config.model_copy(update=known)
    return resolved.model_copy(update=_beside_messages(resolved, source))


def _beside_messages(config: CorpusConfig, source: Source) -> dict[str, str]:
    """Return the defaults of the settings in `OF_CONVERSATIONS` that are not set, where the first rows have such."""
    if config.layout == "text" and (named := [name for name in OF_CONVERSATIONS if getattr(config, name)]):
        raise UserError(
            f"corpus.{named[0]}: only conversations have it, and corpus {config.name} is read as texts: leave it out, "
            "or set corpus.messages to the column of conversations"
        )
    unset = [name for name in OF_CONVERSATIONS if getattr(config, name) is None]
    if config.layout == "text" or not unset or isinstance(config.source, GeneratedSource):
        return {}
    rows = first_rows(config, source)
    found = {
        "tools": TOOLS_COLUMN if _have(rows, TOOLS_COLUMN, row_tools) else None,
        "template_arguments": ARGUMENTS_COLUMN if _have(rows, ARGUMENTS_COLUMN, template_arguments) else None,
        "marks": _mark_of(config, rows),
    }
    return {name: value for name in unset if (value := found[name]) is not None}


def _have(rows: Sequence[SourceRow], column: str, read: Callable[[Any], Any]) -> bool:
    """Return whether a row has something in a column that can be read."""
    for row in rows:
        with suppress(RowDropped):
            if read(row.get(column)):
                return True
    return False


def _mark_of(config: CorpusConfig, rows: Sequence[SourceRow]) -> str | None:
    """Return the mark that messages of the first rows have; None if they have none."""
    messages = [
        message for row in rows for column in _message_columns(config) for message in _messages_of(row.get(column))
    ]
    return next((key for key in MARKS if any(is_mark(message.get(key)) for message in messages)), None)


def _message_columns(config: CorpusConfig) -> tuple[str, ...]:
    return (config.messages,) if config.messages else PAIRS.get(config.layout, ())


def _recognized(config: CorpusConfig, source: Source) -> Mapping[str, Any]:
    if config.messages is None and config.text != TEXT_COLUMN:
        return {"layout": "text"}
    if isinstance(config.source, GeneratedSource):
        return {"layout": "text" if config.messages is None else "messages"}
    rows = first_rows(config, source)
    if config.messages is not None:
        forms = (conversation_form(row.get(config.messages)) for row in rows)
        return {"layout": next(filter(None, forms), "messages")}
    if not rows or any(TEXT_COLUMN in row for row in rows):  # what can't be read is reported where all is read
        return {"layout": "text"}
    if found := _layout_of(rows, _place(config, source)):
        return found
    if _has_text_later(source):
        return {"layout": "text"}
    raise _unrecognized(config, source, rows)


def _has_text_later(source: Source) -> bool:
    """Whether a row of JSON after the first ones has the column of texts: each row may have others."""
    if not any(file.format in ("jsonl", "json") for file in source.files.files):
        return False
    return any(TEXT_COLUMN in row for row in _first_rows(source, ROWS_BEFORE_A_COLUMN))


def first_rows(config: CorpusConfig, source: Source) -> Sequence[SourceRow]:
    """Return the first rows of a source with all their columns; none if they can't be read."""
    if not isinstance(config.source, HubSource) or source.files.files:
        return _first_rows(source)
    rows = _rows_of_hub.get(config.source) or _first_rows(source)
    if rows:
        _rows_of_hub[config.source] = rows
    return rows


def _first_rows(source: Source, most: int = _ROWS) -> Sequence[SourceRow]:
    try:
        return take_rows(source, most)
    except UserError:
        return []


def take_rows(source: Source, most: int) -> list[SourceRow]:
    """Return the first rows of a source with all their columns. Raises UserError if they can't be read."""
    return [row for _, row in islice(source.rows(Columns(every=True), Counter()), most)]


def _place(config: CorpusConfig, source: Source) -> str:
    """Return what a message calls the source: its first file, or the corpus by name."""
    if isinstance(config.source, HubSource):
        return f"dataset {config.source.name!r}"
    return source.files.files[0].url if source.files.files else f"corpus {config.name}"


def _layout_of(rows: Sequence[SourceRow], place: str) -> Mapping[str, Any] | None:
    """Return the settings of the layout that one of these rows has, the first by order of layouts."""
    for column in _CONVERSATION_COLUMNS:
        if form := next(filter(None, (conversation_form(row.get(column)) for row in rows)), None):
            return {"layout": form, "messages": column}
    for layout, columns in PAIRS.items():
        if any(all(column in row for column in columns) for row in rows):
            _refuse_labels(rows, layout, place)
            return {"layout": layout}
    if any("chosen" in row and "rejected" in row for row in rows):
        raise UserError(
            f"{place} has pairs of chosen and rejected answers (preferences), and a student is distilled from one text "
            f"per row: {_fix_of_chosen(rows)}"
        )
    return None


def _refuse_labels(rows: Sequence[SourceRow], layout: str, place: str) -> None:
    if layout == "prompt_completion" and any(isinstance(row.get("label"), bool) for row in rows):
        raise UserError(
            f"{place} has completions labeled true and false (preferences), and those that are false would be learned "
            f"too: keep the rows that are true, or take all with --set corpus.layout={layout}"
        )


def _fix_of_chosen(rows: Sequence[SourceRow]) -> str:
    if any(conversation_form(row.get("chosen")) for row in rows):
        return "take the chosen ones with --set corpus.messages=chosen"
    template = "{prompt}{chosen}" if any("prompt" in row for row in rows) else "chosen"
    return f"take the chosen ones with --set corpus.text={template!r}"


def _unrecognized(config: CorpusConfig, source: Source, rows: Sequence[SourceRow]) -> MissingColumn:
    values: dict[str, Any] = {}
    for row in rows:
        values |= {name: value for name, value in row.items() if values.get(name) is None}
    shown = [f"{name!r} ({_type_name(value)})" for name, value in islice(values.items(), _MOST_SHOWN)]
    more = ["…"] if len(values) > _MOST_SHOWN else []
    return MissingColumn.of(
        f"{_place(config, source)} has no column {TEXT_COLUMN!r}; it has {', '.join([*shown, *more]) or 'none'}.",
        f"{_fix(rows, values)}Rows that are recognized have conversations in a column `messages` or `conversations`, "
        "`prompt` with `completion`, or `instruction` with `output`; corpus.layout says which. Leave out files that "
        "have no texts with corpus.source.exclude.",
    )


def _fix(rows: Sequence[SourceRow], values: Mapping[str, Any]) -> str:
    """Return the setting to write: the column with the longest texts is the most likely one."""
    conversations = [name for name in values if any(conversation_form(row.get(name)) for row in rows)]
    if conversations:
        return f"Set the column with the conversations: --set corpus.messages={conversations[0]}. "
    sizes = {name: sum(len(row[name]) for row in rows if isinstance(row.get(name), str)) for name in values}
    texts = sorted((name for name in sizes if sizes[name]), key=lambda name: -sizes[name])
    if not texts:
        return "Set corpus.text to a column of texts, or corpus.messages to one of conversations. "
    others = f" (or {', '.join(map(repr, texts[1:5]))})" if len(texts) > 1 else ""
    return f"Set the column with the texts, or a template of columns: --set corpus.text={texts[0]}{others}. "


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list():
            return f"list of {_type_name(value[0])}" if value else "empty list"
        case dict():
            return f"mapping of {', '.join(map(str, islice(value, 4)))}" if value else "empty mapping"
    return type(value).__name__


def layout_line(config: CorpusConfig, source: Source) -> str | None:
    """Return one line about how a corpus with this resolved configuration is read; None for plain texts and messages.

    It names marks and columns of the first rows that are not used.
    """
    rows = first_rows(config, source) if config.layout != "text" else []
    used, ignored = _used(config), [*_unused_marks(config, rows), *_unused_columns(config, rows)]
    if not (used or ignored) and config.layout in ("text", "messages") and config.messages != MESSAGES_COLUMN:
        return None
    column = f", column {config.messages!r}" if config.messages else ""
    unused = f"; not used: {', '.join(ignored)}" if ignored else ""
    read = ", ".join([READ_AS[config.layout] + column, *used])
    return f"corpus {config.name} is read as {config.layout}: {read}{unused}"


def _used(config: CorpusConfig) -> list[str]:
    """Return what is read beside the conversations."""
    return [
        *([f"tools in column {config.tools!r}"] if config.tools else []),
        *([f"template arguments in column {config.template_arguments!r}"] if config.template_arguments else []),
        *([f"messages marked by {config.marks!r}"] if config.marks else []),
    ]


def _unused_columns(config: CorpusConfig, rows: Sequence[SourceRow]) -> list[str]:
    columns = {TOOLS_COLUMN: config.tools, ARGUMENTS_COLUMN: config.template_arguments}
    return [
        f"column {column!r}"
        for column, used in columns.items()
        if used != column and any(row.get(column) for row in rows)
    ]


def _unused_marks(config: CorpusConfig, rows: Sequence[SourceRow]) -> list[str]:
    keys: dict[str, None] = {}
    for row in rows:
        keys |= {f"column {name!r}": None for name in _NOT_USED if name in row}
        for message in _messages_of(row.get(config.messages or "")):
            others = (name for name in _NOT_USED if name != config.marks and message.get(name) is not None)
            keys |= {f"{name!r} of messages": None for name in others}
    return list(keys)


def _messages_of(value: Any) -> list[dict[str, Any]]:
    try:
        return [message for message in listed(value) if isinstance(message, dict)]
    except RowDropped:
        return []
