"""Bits per byte on held-out text: the measure that does not depend on the tokenizer.

Counted are the content tokens that have a prediction, and the bytes that those cover: the first token of a sequence
without a begin-of-text token has none. Teacher and student are measured on the same examples: those that both could
tokenize.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.progress import track
from alm_pipeline.scoring.scorer import Scorer
from storage.columns import list_rows
from storage.dataset import Dataset, read_aligned
from storage.errors import UserError
from storage.schemas import TokenKind


def bits_per_byte(
    logprobs: npt.NDArray[np.float32], byte_lengths: npt.NDArray[np.int32], kinds: npt.NDArray[np.uint8]
) -> float:
    """−Σ log₂ p / Σ bytes, over flat arrays of tokens."""
    counted = np.isfinite(logprobs) & (kinds == TokenKind.CONTENT)
    nats = -float(logprobs[counted].sum(dtype=np.float64))
    return nats / math.log(2) / int(byte_lengths[counted].sum())


def teacher_bits_per_byte(caches: Mapping[str, Dataset]) -> float:
    """The teacher's held-out bits per byte, from its scores: no forward pass.

    `caches` are the datasets by role, as `Pipeline.caches`. Raises UserError when nothing is held out.
    """
    logprobs = _held_out(caches, "scores", "logprobs")
    return bits_per_byte(np.concatenate(logprobs), *_bytes_and_kinds(caches, "teacher_tokens"))


def student_bits_per_byte(caches: Mapping[str, Dataset], student: Scorer, title: str) -> float:
    """A student's held-out bits per byte; `title` is what the progress is called.

    Raises UserError when nothing is held out.
    """
    ids = _held_out(caches, "student_tokens", "token_ids")
    with track(title, sum(map(len, ids)), "tokens") as advance:
        scores = student.score(ids, advance)
    return bits_per_byte(np.concatenate([row[0] for row in scores]), *_bytes_and_kinds(caches, "student_tokens"))


def _bytes_and_kinds(caches: Mapping[str, Dataset], tokens: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    lengths, kinds = (np.concatenate(_held_out(caches, tokens, column)) for column in ("byte_lengths", "kinds"))
    return lengths, kinds


def _held_out(caches: Mapping[str, Dataset], name: str, column: str) -> list[npt.NDArray[Any]]:
    """One dataset's column for every held-out example that both sides could tokenize."""
    wanted = {"examples": ("split",), "alignments": ("kinds",), name: (column,)}
    found: list[npt.NDArray[Any]] = []
    for shard in range(len(caches["alignments"].complete_manifest().shards)):
        tables = read_aligned(caches, shard, wanted)
        splits, chunks = tables["examples"]["split"].to_pylist(), list_rows(tables["alignments"]["kinds"])
        values = list_rows(tables[name][column])
        found += [values[row] for row, split in enumerate(splits) if split == "held_out" and len(chunks[row])]
    if not found:
        raise UserError(
            f"{caches['examples'].url}: no example is held out, so nothing can be evaluated: "
            "raise corpus.held_out, or use a larger corpus"
        )
    return found
