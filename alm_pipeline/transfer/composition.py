"""New embeddings as weighted sums of the source's rows.

Shapes: S rows of the source's table, V of the target's, H their width, N terms of all sums together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Fill = Literal["draw", "mean"]
"""what a row without terms becomes: a draw from the distribution of the source's rows, or their mean"""


@dataclass(frozen=True)
class Composition:
    """Which source rows make up each target row, and with what weights."""

    starts: npt.NDArray[np.int64]
    """[V + 1] where each row's terms begin"""
    ids: npt.NDArray[np.int64]
    """[N] source rows"""
    weights: npt.NDArray[np.float64]
    """[N]"""
    copied: npt.NDArray[np.bool_]
    """[V] the row is the source's, as it is"""
    fill: Fill = "draw"

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int] | npt.NDArray[np.int64]],
        weights: Sequence[Sequence[float] | npt.NDArray[np.float64]],
        copied: npt.NDArray[np.bool_],
        fill: Fill = "draw",
    ) -> "Composition":
        """Of every row's terms."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in ids], dtype=np.int64)])
        count = int(starts[-1])
        return cls(
            starts,
            np.fromiter(chain.from_iterable(ids), np.int64, count),
            np.fromiter(chain.from_iterable(weights), np.float64, count),
            copied,
            fill,
        )

    @property
    def empty(self) -> npt.NDArray[np.bool_]:
        """[V] rows without terms."""
        found: npt.NDArray[np.bool_] = self.starts[1:] == self.starts[:-1]
        return found

    def counts(self) -> dict[str, int]:
        """How many rows are copied, composed of source rows, and drawn; what there is none of is left out."""
        drawn = int(self.empty.sum()) if self.fill == "draw" else 0
        copied = int(self.copied.sum())
        counts = {"copied": copied, "composed": len(self.copied) - copied - drawn, "drawn": drawn}
        return {how: count for how, count in counts.items() if count}


def compose_rows(source: Tensor, composition: Composition, rows: int, seed: int) -> Tensor:
    """[V, ...] the target's table of the source's [S, ...], which is a matrix or, as a bias, a vector.

    Computed in float32, or in the source's own float64; a row that is copied stays as it is. Draws come from N(mean,
    std) of the first `rows` rows of the source, each channel for itself: those beyond its tokenizer are padding.
    """
    table_SH = source.detach().reshape(len(source), -1)
    table_SH = table_SH if table_SH.dtype == torch.float64 else table_SH.float()
    made_VH = torch.nn.functional.embedding_bag(
        torch.from_numpy(composition.ids).to(source.device),
        table_SH,
        torch.from_numpy(composition.starts).to(source.device),
        mode="sum",
        per_sample_weights=torch.from_numpy(composition.weights).to(table_SH),
        include_last_offset=True,
    )
    empty = torch.from_numpy(composition.empty).to(source.device)
    made_VH[empty] = _filling(table_SH[:rows], int(empty.sum()), composition.fill, seed)
    return made_VH.to(source.dtype).reshape(-1, *source.shape[1:])


def _filling(table_SH: Tensor, count: int, fill: Fill, seed: int) -> Tensor:
    std_H, mean_H = torch.std_mean(table_SH, dim=0)
    if fill == "mean" or not count:
        return mean_H.expand(count, -1)
    # on the processor: the same draws wherever the model lies
    noise = torch.randn(count, len(mean_H), generator=torch.Generator().manual_seed(seed), dtype=table_SH.dtype)
    return mean_H + std_H * noise.to(table_SH.device)
