"""The columns of every dataset: one Arrow schema for each kind. `alm_pipeline.naming.columns` describes the columns.

Columns hold only plain strings and lists of numbers, so that Polars, DuckDB, pandas and `datasets` read them without
this project. Row k of shard s is the same example in every dataset that descends from the same examples, or the same
demonstration; only activation sums have rows for places in a model.
"""

from collections.abc import Collection
from enum import IntEnum, IntFlag, StrEnum

import pyarrow as pa

from storage.kinds import corpora, edits, filtering, questions, rollouts

FORMAT_VERSION = 2
PROMPT, COMPLETION = "prompt", "completion"
"""The roles in a prompt with a completion: context, and what is learned."""
MANIFEST = "manifest.json"
"""The file that makes a dataset or folder complete; it is written last."""


class Kind(StrEnum):
    """The kinds of datasets: folders under a storage root."""

    SIGNATURES = "signatures"
    DECISIONS = "decisions"
    EXAMPLES = "examples"
    TOKENS = "tokens"
    ALIGNMENTS = "alignments"
    TEACHER_SCORES = "teacher_scores"
    QUESTIONS = "questions"
    CHOICE_SCORES = "choice_scores"
    PLACES = "places"
    NEXT_BYTES = "next_bytes"
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


SCHEMAS: dict[Kind, pa.Schema] = {
    Kind.SIGNATURES: filtering.SIGNATURES,
    Kind.DECISIONS: filtering.DECISIONS,
    Kind.EXAMPLES: corpora.EXAMPLES,
    Kind.TOKENS: corpora.TOKENS,
    Kind.ALIGNMENTS: corpora.ALIGNMENTS,
    Kind.TEACHER_SCORES: corpora.TEACHER_SCORES,
    Kind.QUESTIONS: questions.QUESTIONS,
    Kind.CHOICE_SCORES: questions.CHOICE_SCORES,
    Kind.PLACES: questions.PLACES,
    Kind.NEXT_BYTES: questions.NEXT_BYTES,
    Kind.DEMONSTRATIONS: edits.DEMONSTRATIONS,
    Kind.NEUTRAL_ANSWERS: edits.NEUTRAL_ANSWERS,
    Kind.ACTIVATIONS: edits.ACTIVATIONS,
    Kind.ACTIVATION_SUMS: edits.ACTIVATION_SUMS,
}

OPTIONAL: dict[Kind, tuple[pa.Field, ...]] = {
    Kind.EXAMPLES: (*rollouts.COMPLETION_AT, pa.field("template_arguments", pa.string()), *rollouts.WRITTEN),
    Kind.TEACHER_SCORES: corpora.TOP,
    Kind.ACTIVATIONS: edits.SIDES,
}
"""Columns that a stage adds to its kind's own when configured to; the dataset's identity records whether it did."""


def schema_of(kind: Kind, columns: Collection[str]) -> pa.Schema:
    """The schema of a shard with these columns: the kind's own, and those optional ones that are among them."""
    optional = [field for field in OPTIONAL.get(kind, ()) if field.name in columns]
    return pa.schema([*SCHEMAS[kind], *optional])
