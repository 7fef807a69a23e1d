"""Tokenizers written in another way that is faster for an engine, and gives the same ids."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alm_pipeline.tokenization.engines.flat_ids import FlatIds


@dataclass(frozen=True)
class Expansion:
    """The tokens that an id beyond the vocabulary stands for."""

    size: int
    """the vocabulary's"""
    pieces: FlatIds
    """the tokens of each id from `size` on"""

    def of(self, flat: FlatIds) -> FlatIds:
        """Return the ids with those tokens in the places of ids beyond the vocabulary."""
        beyond = np.flatnonzero(flat.ids >= self.size)
        if not len(beyond):
            return flat
        pieces = flat.ids[beyond] - self.size
        sizes = np.diff(self.pieces.offsets)[pieces]
        counts = np.ones(len(flat.ids), np.int64)
        counts[beyond] = sizes
        ends = np.concatenate([[0], np.cumsum(counts)])
        ids = np.repeat(flat.ids, counts)
        # the pieces' tokens one after the other, without a loop
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        ids[np.repeat(ends[beyond], sizes) + within] = self.pieces.ids[
            np.repeat(self.pieces.offsets[pieces], sizes) + within
        ]
        return FlatIds(ids, ends[flat.offsets])


@dataclass(frozen=True)
class Rewritten:
    """A tokenizer.json for an engine."""

    definition: str
    expansion: Expansion | None = None
    """of ids beyond the vocabulary, if there are any"""


def definition(settings: Mapping[str, Any], model: str) -> str:
    """Return a tokenizer.json of its settings and of the JSON of its model, which begins with its name."""
    return f"{json.dumps(dict(settings))[:-1]},{model}"
