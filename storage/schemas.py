"""The columns of every dataset, one Arrow schema a kind.

Plain strings and lists of numbers only, so that Polars, DuckDB, pandas and `datasets` read them without this
project. Row k of shard s is the same example in every dataset that descends from the same examples.
"""

from collections.abc import Collection
from enum import IntEnum, StrEnum

import pyarrow as pa

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
"""the file that makes a dataset or folder complete, written last"""


class Kind(StrEnum):
    """The kinds of datasets: the folders under a storage root."""

    EXAMPLES = "examples"
    TOKENS = "tokens"
    ALIGNMENTS = "alignments"
    TEACHER_SCORES = "teacher_scores"


class ChunkKind(IntEnum):
    """What an aligned chunk covers."""

    CONTENT = 0
    """bytes of the example's text that both sides' tokens cover: the chunks that the objective compares"""
    PAIRED = 1
    """tokens of the same role (begin of text, start of turn, …, end of turn) on each side: compared too, no byte"""
    UNPAIRED = 2
    """tokens or bytes without a counterpart: not compared"""


class TokenKind(IntEnum):
    """What a token stands for. From `BEGIN_OF_TEXT` on: scaffold in a role that pairs with the other side's."""

    CONTENT = 0
    """bytes of the text, and nothing else"""
    MIXED = 1
    """content together with template text: its likelihood is not the content's alone"""
    TEMPLATE = 2
    """a special token or text of a chat template that has no role; covers no byte of the content"""
    BEGIN_OF_TEXT = 3
    START_OF_TURN = 4
    ROLE = 5
    """the role's name, such as `user`"""
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
            _required("split", pa.string()),  # train | held_out
            _required("text", pa.string()),  # of a conversation: its messages' contents, one after the other
            pa.field("messages", pa.string()),  # JSON; null for a plain text
        ]
    ),
    Kind.TOKENS: pa.schema(
        [
            _ID,
            _list("token_ids", pa.int32()),
            _list(
                "byte_lengths", pa.int32()
            ),  # bytes of `text` that each token covers; with the uncovered ones they add up to it
            _list("kinds", pa.uint8()),  # TokenKind
            _list("turns", pa.int16()),  # the message that each token belongs to; -1: none. Empty for a plain text
            _list("roles", pa.string()),  # of a conversation: its messages' roles
            # bytes of `text` that no token covers: so many stand before the token of that index in the example (the
            # number of tokens: behind the last)
            _list("uncovered_at", pa.int32()),
            _list("uncovered_bytes", pa.int32()),
            pa.field("dropped", pa.string()),  # why the example has no tokens; null where it has
        ]
    ),
    Kind.ALIGNMENTS: pa.schema(
        [
            _ID,
            _list("teacher_tokens", pa.int32()),  # tokens a chunk; they add up to the example's
            _list("student_tokens", pa.int32()),
            _list("byte_lengths", pa.int32()),
            _list("kinds", pa.uint8()),  # ChunkKind
            # the chunk is an assistant's content, or ends an assistant's turn. Empty for a plain text
            _list("assistant", pa.bool_()),
        ]
    ),
    Kind.TEACHER_SCORES: pa.schema(
        [
            _ID,
            # natural logarithms, one a teacher token; NaN where the token has no prediction (a first token)
            _list("logprobs", pa.float32()),
            # log-probability that a boundary token comes after the token
            _list("boundary_logprobs", pa.float32()),
        ]
    ),
}

OPTIONAL: dict[Kind, tuple[pa.Field, ...]] = {
    Kind.TEACHER_SCORES: (
        # after each token its k likeliest successors, likeliest first; token after token, k is len / tokens
        _list("top_ids", pa.int32()),
        _list("top_logprobs", pa.float32()),
    ),
}
"""Columns behind a kind's own that a stage writes when asked for; a dataset's identity says whether it was."""


def schema_of(kind: Kind, columns: Collection[str]) -> pa.Schema:
    """The schema of a shard of these columns: the kind's own, and which of the optional ones are among them."""
    asked = [field for field in OPTIONAL.get(kind, ()) if field.name in columns]
    return pa.schema([*SCHEMAS[kind], *asked])
