"""The columns of every dataset: one Arrow schema for each kind. `alm_pipeline.naming.columns` describes the columns.

Columns hold only plain strings and lists of numbers, so that Polars, DuckDB, pandas and `datasets` read them without
this project. Row k of shard s is the same example in every dataset that descends from the same examples.
"""

from collections.abc import Collection
from enum import IntEnum, IntFlag, StrEnum

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
    DEMONSTRATIONS = "demonstrations"
    NEUTRAL_ANSWERS = "neutral_answers"
    ACTIVATIONS = "activations"
    ACTIVATION_SUMS = "activation_sums"


class ChunkKind(IntEnum):
    """What an aligned chunk covers."""

    CONTENT = 0
    """Bytes of the example's text that tokens of both sides cover: the chunks that the objective compares."""
    PAIRED = 1
    """Tokens of the same role (begin of text, start of turn, …, end of turn) on both sides: compared, without bytes."""
    UNPAIRED = 2
    """Tokens or bytes without a counterpart: not compared."""


class ChunkEnd(IntFlag):
    """What is known of the text at the end of an aligned chunk."""

    BOUNDARY = 1
    """A boundary token follows on both sides."""
    EXACT = 2
    """Given that a boundary follows, both tokenizations up to here are those of any text that begins so: no white space
    stands before, and no token of either vocabulary goes on across such a place."""
    ANCHOR = 3
    """Both: the probability of the text up to here with a boundary after it doesn't depend on the tokenizer."""


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
    TRANSITION = 9
    """Text of a chat template between two parts of an assistant's message: it ends the thoughts, or opens a call."""


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
            _list("ends", pa.uint8()),
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
    Kind.DEMONSTRATIONS: pa.schema(
        [
            _ID,
            _required("prompt", pa.string()),
            _required("positive", pa.string()),
            _required("negative", pa.string()),
            pa.field("neutral", pa.string()),
        ]
    ),
    Kind.NEUTRAL_ANSWERS: pa.schema([_ID, _required("answer", pa.string()), _list("token_ids", pa.int32())]),
    Kind.ACTIVATIONS: pa.schema([_ID]),
    Kind.ACTIVATION_SUMS: pa.schema(
        [
            _ID,
            _required("rows", pa.int64()),
            _list("neutral", pa.float64()),
            _list("positive", pa.float64()),
            _list("negative", pa.float64()),
            _list("squares", pa.float64()),
            _list("neutral_positive", pa.float64()),
            _list("neutral_negative", pa.float64()),
        ]
    ),
}

OPTIONAL: dict[Kind, tuple[pa.Field, ...]] = {
    Kind.EXAMPLES: (_required("completion_at", pa.int32()), pa.field("template_arguments", pa.string())),
    Kind.TEACHER_SCORES: (
        _list("top_ids", pa.int32()),
        _list("top_logprobs", pa.float32()),
    ),
    Kind.ACTIVATIONS: (
        _list("neutral", pa.float32()),
        _list("positive", pa.float32()),
        _list("negative", pa.float32()),
    ),
}
"""Columns that a stage adds to its kind's own when configured to; the dataset's identity records whether it did."""


def schema_of(kind: Kind, columns: Collection[str]) -> pa.Schema:
    """The schema of a shard with these columns: the kind's own, and those optional ones that are among them."""
    optional = [field for field in OPTIONAL.get(kind, ()) if field.name in columns]
    return pa.schema([*SCHEMAS[kind], *optional])
