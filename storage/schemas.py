"""The columns of every dataset: one Arrow schema for each kind, and a description of each column.

Columns hold only plain strings and lists of numbers, so that Polars, DuckDB, pandas and `datasets` read them without
this project. Row k of shard s is the same example in every dataset that descends from the same examples.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import pyarrow as pa

FORMAT_VERSION = 2
PROMPT, COMPLETION = "prompt", "completion"
"""The roles in a prompt with a completion: context, and what is learned."""
MANIFEST = "manifest.json"
"""The file that makes a dataset or folder complete; it is written last."""


class Kind(StrEnum):
    """The kinds of datasets: folders under a storage root."""

    EXAMPLES = "examples"
    TOKENS = "tokens"
    ALIGNMENTS = "alignments"
    TEACHER_SCORES = "teacher_scores"


class ChunkKind(IntEnum):
    """What an aligned chunk covers."""

    CONTENT = 0
    """Bytes of the example's text that tokens of both sides cover: the chunks that the objective compares."""
    PAIRED = 1
    """Tokens of the same role (begin of text, start of turn, …, end of turn) on both sides: compared, without bytes."""
    UNPAIRED = 2
    """Tokens or bytes without a counterpart: not compared."""


class TokenKind(IntEnum):
    """What a token stands for. From `BEGIN_OF_TEXT` on: scaffold with a role, which pairs with the other side's."""

    CONTENT = 0
    """Bytes of the text and nothing else."""
    MIXED = 1
    """Content together with template text, or of a prompt and its completion: its likelihood is not that of one."""
    TEMPLATE = 2
    """A special token or text of a chat template that has no role; covers no byte of the content."""
    BEGIN_OF_TEXT = 3
    START_OF_TURN = 4
    ROLE = 5
    """The role's name, such as `user`."""
    END_OF_HEADER = 6
    END_OF_TURN = 7
    END_OF_TEXT = 8


def _required(name: str, type_: pa.DataType) -> pa.Field:
    return pa.field(name, type_, nullable=False)


def _list(name: str, type_: pa.DataType) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("item", type_, nullable=False)), nullable=False)


_ID = _required("id", pa.string())

SCHEMAS: dict[Kind, pa.Schema] = {
    Kind.EXAMPLES: pa.schema(
        [
            _ID,
            _required("split", pa.string()),
            _required("text", pa.string()),
            pa.field("messages", pa.string()),
        ]
    ),
    Kind.TOKENS: pa.schema(
        [
            _ID,
            _list("token_ids", pa.int32()),
            _list("byte_lengths", pa.int32()),
            _list("kinds", pa.uint8()),
            _list("turns", pa.int16()),
            _list("roles", pa.string()),
            _list("turn_bytes", pa.int32()),
            _list("uncovered_at", pa.int32()),
            _list("uncovered_bytes", pa.int32()),
            pa.field("dropped", pa.string()),
        ]
    ),
    Kind.ALIGNMENTS: pa.schema(
        [
            _ID,
            _list("teacher_tokens", pa.int32()),
            _list("student_tokens", pa.int32()),
            _list("byte_lengths", pa.int32()),
            _list("kinds", pa.uint8()),
            _list("assistant", pa.bool_()),
        ]
    ),
    Kind.TEACHER_SCORES: pa.schema(
        [
            _ID,
            _list("logprobs", pa.float32()),
            _list("boundary_logprobs", pa.float32()),
        ]
    ),
}

OPTIONAL: dict[Kind, tuple[pa.Field, ...]] = {
    Kind.EXAMPLES: (_required("completion_at", pa.int32()),),
    Kind.TEACHER_SCORES: (
        _list("top_ids", pa.int32()),
        _list("top_logprobs", pa.float32()),
    ),
}
"""Columns that a stage adds to its kind's own when configured to; the dataset's identity records whether it did."""


@dataclass(frozen=True)
class ColumnDescription:
    """What a column holds, for the documentation; none of this is written to the files."""

    meaning: str
    shape: str = "one per row"
    """"one per row", or the length of each row's list in brackets"""
    unit: str = ""
    """empty for what has none: texts, ids, categories"""


_ID_COLUMN = ColumnDescription("The example's id: the same in every dataset made from these examples.")

COLUMN_DESCRIPTIONS: dict[Kind, dict[str, ColumnDescription]] = {
    Kind.EXAMPLES: {
        "id": ColumnDescription(
            "The document's id, followed by `#` and the piece's number if the document was cut into several examples."
        ),
        "split": ColumnDescription("`train` or `held_out`. All pieces of a document have the same split."),
        "text": ColumnDescription("The text. For a conversation: the contents of its messages, concatenated."),
        "messages": ColumnDescription(
            "The conversation as a JSON list of messages with `role` and `content`; null for a plain text."
        ),
        "completion_at": ColumnDescription(
            "Where the completion begins: a byte of `text`, or the index of a message of a conversation. All before it "
            "is context that is not learned. Only of prompts with completions."
        ),
    },
    Kind.TOKENS: {
        "id": _ID_COLUMN,
        "token_ids": ColumnDescription(
            "The token ids of the example, special and template tokens included.", "[tokens]"
        ),
        "byte_lengths": ColumnDescription(
            "The number of bytes of `text` that each token covers; together with `uncovered_bytes` they add up to the "
            "length of `text`.",
            "[tokens]",
            "bytes (UTF-8)",
        ),
        "kinds": ColumnDescription("What each token stands for: a `TokenKind`.", "[tokens]"),
        "turns": ColumnDescription(
            "The index of the message that each token belongs to; -1 if none. 0 and 1 in texts of a prompt with a "
            "completion. Empty for a plain text.",
            "[tokens], or empty",
            "messages, from 0",
        ),
        "roles": ColumnDescription(
            "The roles of the conversation's messages, such as `user`; `prompt` and `completion` where only a "
            "completion is learned. Empty for a plain text.",
            "[messages], or empty",
        ),
        "turn_bytes": ColumnDescription(
            "The number of bytes of `text` in each of these messages; they add up to the length of `text`. Empty for a "
            "plain text.",
            "[messages], or empty",
            "bytes (UTF-8)",
        ),
        "uncovered_at": ColumnDescription(
            "The places of bytes that no token covers: the index of the token after them, or the number of tokens if "
            "they follow the last one.",
            "[gaps]",
            "tokens, from 0",
        ),
        "uncovered_bytes": ColumnDescription("The number of bytes in each of these gaps.", "[gaps]", "bytes (UTF-8)"),
        "dropped": ColumnDescription("Why the example has no tokens; null if it has tokens."),
    },
    Kind.ALIGNMENTS: {
        "id": _ID_COLUMN,
        "teacher_tokens": ColumnDescription(
            "The number of teacher tokens in each chunk; they add up to the example's teacher tokens.",
            "[chunks]",
            "tokens",
        ),
        "student_tokens": ColumnDescription(
            "The number of student tokens in each chunk; they add up to the example's student tokens.",
            "[chunks]",
            "tokens",
        ),
        "byte_lengths": ColumnDescription(
            "The number of bytes of `text` that each chunk covers.", "[chunks]", "bytes (UTF-8)"
        ),
        "kinds": ColumnDescription("What each chunk covers: a `ChunkKind`.", "[chunks]"),
        "assistant": ColumnDescription(
            "Whether the chunk is learned where only the assistant's turns are: it is content of one or of a "
            "completion, or ends one, and of the parts and turns that `objective.learn` and `objective.learned_turns` "
            "choose. Empty for a plain text.",
            "[chunks], or empty",
        ),
    },
    Kind.TEACHER_SCORES: {
        "id": _ID_COLUMN,
        "logprobs": ColumnDescription(
            "The teacher's log-probability of each token given all tokens before it; NaN for a token without a "
            "prediction (a first token).",
            "[teacher tokens]",
            "nats",
        ),
        "boundary_logprobs": ColumnDescription(
            "The log-probability that a boundary token (one that begins with white space, or a special one) comes "
            "after each token.",
            "[teacher tokens]",
            "nats",
        ),
        "top_ids": ColumnDescription(
            "The ids of the k likeliest tokens after each token, likeliest first. Only with `score.top_k: k`.",
            "[teacher tokens × k]",
        ),
        "top_logprobs": ColumnDescription(
            "The log-probabilities of the tokens in `top_ids`. Only with `score.top_k: k`.",
            "[teacher tokens × k]",
            "nats",
        ),
    },
}
"""What each column of each kind holds, the optional ones included."""


def schema_of(kind: Kind, columns: Collection[str]) -> pa.Schema:
    """The schema of a shard with these columns: the kind's own, and those optional ones that are among them."""
    optional = [field for field in OPTIONAL.get(kind, ()) if field.name in columns]
    return pa.schema([*SCHEMAS[kind], *optional])
