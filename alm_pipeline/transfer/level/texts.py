"""The texts that the level of new tokens is measured on: of a run, its training examples; without one, `sample.txt`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from alm_pipeline.evaluation.bits_per_byte import TextTokens
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.transfer.level.words import TOKENS
from storage.columns import list_rows
from storage.dataset import Dataset, read_aligned

LONGEST = 256
"""tokens of one text: many short beginnings say more than a few long texts"""
_SHARDS = 4
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "examples": ("split",),
    "student_tokens": ("token_ids", "byte_lengths", "kinds"),
}
SAMPLE = Path(__file__).with_name("sample.txt")

Item = TypeVar("Item")
Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8]]
"""ids, byte lengths and kinds [tokens] of a text"""


def training_texts(sources: Sequence[Mapping[str, Dataset]]) -> TextTokens:
    """Return beginnings of training examples in the student's tokens, about `TOKENS` of them, evenly spread.

    Each source has its datasets by role, as `Pipeline.caches`. At most `_SHARDS` shards of each are read.
    """
    rows = [
        row
        for caches in sources
        for shard in _evenly(range(len(caches["student_tokens"].complete_manifest().shards)), _SHARDS)
        for row in _training_rows(caches, shard)
    ]
    mean = sum(min(LONGEST, len(row[0])) for row in rows) / max(1, len(rows))
    return _beginnings(_evenly(rows, math.ceil(TOKENS / max(1.0, mean))))


def sample_texts(tokenizer: LoadedTokenizer) -> TextTokens:
    """Return the sample's texts, prose and code, as far as the tokenizer can spell them."""
    return encoded_texts(SAMPLE.read_text(encoding="utf-8").split("\n\n\n"), tokenizer)


def encoded_texts(texts: Sequence[str], tokenizer: LoadedTokenizer) -> TextTokens:
    """Return beginnings of texts; those that the tokenizer cannot spell are left out."""
    batch = ByteEncoder(tokenizer).encode(texts)
    spans = [slice(first, end) for first, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    return _beginnings([(batch.token_ids[span], batch.byte_lengths[span], batch.kinds[span]) for span in spans])


def _evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` items, evenly spaced, always the same."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def _training_rows(caches: Mapping[str, Dataset], shard: int) -> Iterator[Row]:
    tables = read_aligned(caches, shard, _COLUMNS)
    is_trained = pc.equal(tables["examples"]["split"], "train")
    columns = (list_rows(tables["student_tokens"].filter(is_trained)[name]) for name in _COLUMNS["student_tokens"])
    yield from (row for row in zip(*columns, strict=True) if len(row[0]) > 1)


def _beginnings(rows: Sequence[Row]) -> TextTokens:
    # the first, so that there are columns where there are no rows
    none: Row = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint8))
    ids, lengths, kinds = zip(none, *(tuple(values[:LONGEST] for values in row) for row in rows), strict=True)
    return TextTokens(list(ids[1:]), np.concatenate(lengths), np.concatenate(kinds))
