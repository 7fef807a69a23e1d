"""The page of datasets: every column with its type, shape, unit and meaning, from `storage.schemas`."""

import inspect
import re
from enum import IntEnum

import pyarrow as pa

from alm_pipeline.naming.columns import COLUMN_DESCRIPTIONS
from docs.generator.markdown import code, escape, table
from storage.schemas import OPTIONAL, SCHEMAS, ChunkKind, Kind, TokenKind

_INTRODUCTION = """# Datasets

Four kinds of datasets of a distillation, four of an [edit](../how-to/editing.md) and two of a
[calibration](../how-to/calibration.md) are stored as Parquet shards under the storage root:
`KIND/NAME-FINGERPRINT/shard-00000.parquet` and so on. Columns hold plain strings and lists of numbers. Row k of shard s
is the same example (demonstration, question) in every dataset that was made from the same ones; only of activation sums
it is a place in the model.
[Read the caches with other programs](../how-to/reading-caches.md) has snippets; the Parquet files of a student are in
[The student's folder](student-folder.md).

A list's *shape* is its length in one row. Types are Arrow's, and no column but those marked so is ever null.

This page is generated from `storage.schemas`.
"""
_TITLES = {
    Kind.SIGNATURES: "What of each document of a corpus is compared with others, if `corpus.deduplicate` or "
    "`corpus.decontaminate` is set.",
    Kind.DECISIONS: "Which documents are left out before anything is cut, and why.",
    Kind.EXAMPLES: "Texts or conversations, cut to size and split.",
    Kind.TOKENS: "One dataset for each tokenizer: token ids, and the bytes of the text that each token covers.",
    Kind.ALIGNMENTS: "One dataset for each pair of tokens datasets: how many tokens of each side are in each chunk.",
    Kind.TEACHER_SCORES: "One dataset for each teacher: two numbers per token.",
    Kind.QUESTIONS: "Multiple-choice questions, as `alm calibrate` reads them.",
    Kind.CHOICE_SCORES: "One dataset for each model, or point between two: the log-probability of every choice.",
    Kind.PLACES: "Places of texts, drawn by `alm calibrate --corpus`.",
    Kind.NEXT_BYTES: "One dataset for each model, or point between two: the probability of each next byte.",
    Kind.DEMONSTRATIONS: "Prompts with two answers, to edit a model's activations by.",
    Kind.NEUTRAL_ANSWERS: "One dataset for each model: its own answers to the prompts.",
    Kind.ACTIVATIONS: "What a model computes at the last token of each text, in all layers.",
    Kind.ACTIVATION_SUMS: "The same added up over each shard, where that is smaller.",
}


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([_INTRODUCTION, *map(_dataset, Kind), *map(_codes, (ChunkKind, TokenKind))])


def _dataset(kind: Kind) -> str:
    fields = [*SCHEMAS[kind], *OPTIONAL.get(kind, ())]
    header = ("column", "type", "shape", "unit", "meaning")
    return f"## {kind}\n\n{_TITLES[kind]}\n\n{table(header, [_row(kind, field) for field in fields])}"


def _row(kind: Kind, field: pa.Field) -> tuple[str, ...]:
    description = COLUMN_DESCRIPTIONS[kind][field.name]
    words = (description.shape, description.unit or "–", description.meaning)
    return code(field.name), _type(field), *map(escape, words)


def _type(field: pa.Field) -> str:
    is_list = pa.types.is_list(field.type)
    name = str(field.type.value_type if is_list else field.type)
    name = {"float": "float32", "double": "float64"}.get(name, name)  # as NumPy and Polars call them
    name = f"list of {name}" if is_list else name
    return f"{name}, or null" if field.nullable else name


def _codes(codes: type[IntEnum]) -> str:
    """A table of an enumeration's numbers, with the comments under its members."""
    comments = dict(
        re.findall(r'^    (\w+) = \d+\n    """(.*?)"""', inspect.getsource(codes), re.DOTALL | re.MULTILINE)
    )
    rows = [(str(item.value), code(item.name), escape(comments.get(item.name, ""))) for item in codes]
    title = f"## {codes.__name__} {{ #{codes.__name__.lower()} }}"
    return f"{title}\n\n{escape(inspect.cleandoc(codes.__doc__ or ''))}\n\n{table(('number', 'name', 'meaning'), rows)}"
