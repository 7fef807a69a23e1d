"""The columns of every dataset, one Arrow schema a kind.

Plain strings and lists of numbers only, so that Polars, DuckDB, pandas and `datasets` read them without this
project. Row k of shard s is the same example in every dataset that descends from the same examples.
"""

from enum import IntEnum, StrEnum

import pyarrow as pa

FORMAT_VERSION = 1


class Kind(StrEnum):
    """The kinds of datasets: the folders under a storage root."""

    EXAMPLES = "examples"
    TOKENS = "tokens"
    ALIGNMENTS = "alignments"
    TEACHER_SCORES = "teacher_scores"


class ChunkKind(IntEnum):
    """What an aligned chunk covers."""

    CONTENT = 0
    """bytes of the example's text: the chunks that the objective compares"""
    PAIRED = 1
    """one special token on each side with the same role: compared too, covers no byte"""
    UNPAIRED = 2
    """template or special tokens without a counterpart: not compared"""


class TokenKind(IntEnum):
    """What a token stands for."""

    CONTENT = 0
    SPECIAL = 1
    TEMPLATE = 2
    """text of a chat template; covers no byte of the content"""
    MIXED = 3
    """content and template text in one token: its likelihood is not the content's alone"""


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
            _list("byte_lengths", pa.int32()),  # bytes of `text` that each token covers; they add up to all of it
            _list("kinds", pa.uint8()),  # TokenKind
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
