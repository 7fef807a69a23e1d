"""Bits per byte on held-out text: the measure that does not depend on the tokenizer.

Counted are the content tokens that have a prediction, and the bytes that those cover: the first token of a
sequence without a begin-of-text token has none.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alm_pipeline.progress import track
from alm_pipeline.scoring.stage import Scorer
from storage.columns import list_rows
from storage.dataset import Dataset, read_aligned
from storage.errors import UserError
from storage.schemas import TokenKind

_TOKENS = ("token_ids", "byte_lengths", "kinds")


def bits_per_byte(
    logprobs: npt.NDArray[np.float32], byte_lengths: npt.NDArray[np.int32], kinds: npt.NDArray[np.uint8]
) -> float:
    """−Σ log₂ p / Σ bytes, over flat arrays of tokens."""
    counted = np.isfinite(logprobs) & (kinds == TokenKind.CONTENT)
    nats = -float(logprobs[counted].sum(dtype=np.float64))
    return nats / math.log(2) / int(byte_lengths[counted].sum())


def cached_bits_per_byte(examples: Dataset, tokens: Dataset, scores: Dataset) -> float:
    """The held-out bits per byte of the teacher, from its scores: no forward pass."""
    columns = {"examples": ("split",), "tokens": _TOKENS, "scores": ("logprobs",)}
    datasets = {"examples": examples, "tokens": tokens, "scores": scores}
    logprobs: list[npt.NDArray[np.float32]] = []
    lengths: list[npt.NDArray[np.int32]] = []
    kinds: list[npt.NDArray[np.uint8]] = []
    for shard in range(len(scores.complete_manifest().shards)):
        tables = read_aligned(datasets, shard, columns)
        held_out = _held_out_rows(tables["examples"]["split"].to_pylist())
        for column, into in (("byte_lengths", lengths), ("kinds", kinds)):
            rows = list_rows(tables["tokens"][column])
            into.extend(rows[row] for row in held_out)
        rows = list_rows(tables["scores"]["logprobs"])
        logprobs.extend(rows[row] for row in held_out)
    _require(lengths, examples)
    return bits_per_byte(np.concatenate(logprobs), np.concatenate(lengths), np.concatenate(kinds))


def model_bits_per_byte(examples: Dataset, tokens: Dataset, scorer: Scorer, title: str) -> float:
    """The held-out bits per byte of a model that these tokens belong to."""
    ids, lengths, kinds = held_out_tokens(examples, tokens)
    with track(title, sum(map(len, ids)), "tokens") as advance:
        scores = scorer.score(ids, advance)
    return bits_per_byte(np.concatenate([row[0] for row in scores]), np.concatenate(lengths), np.concatenate(kinds))


def held_out_tokens(examples: Dataset, tokens: Dataset) -> tuple[list[npt.NDArray[np.int32]], ...]:
    """The held-out examples' token ids, byte lengths and kinds, one array an example.

    Raises UserError when no example that could be tokenized is held out.
    """
    found: tuple[list[npt.NDArray[np.int32]], ...] = ([], [], [])
    for shard in range(len(tokens.complete_manifest().shards)):
        tables = read_aligned(
            {"examples": examples, "tokens": tokens}, shard, {"examples": ("split",), "tokens": _TOKENS}
        )
        columns = [list_rows(tables["tokens"][column]) for column in _TOKENS]
        for row in _held_out_rows(tables["examples"]["split"].to_pylist()):
            if len(columns[0][row]):
                for into, rows in zip(found, columns, strict=True):
                    into.append(rows[row])
    _require(found[0], examples)
    return found


def _held_out_rows(splits: Sequence[str]) -> list[int]:
    return [row for row, split in enumerate(splits) if split == "held_out"]


def _require(rows: Sequence[npt.NDArray[np.int32]], examples: Dataset) -> None:
    if not rows:
        raise UserError(
            f"{examples.url}: no example is held out, so nothing can be evaluated: "
            "raise corpus.held_out, or use a larger corpus"
        )
