"""New embeddings as weighted sums of the source's rows.

Shapes: S rows of the source's table, V of the target's, H their width, N terms of all sums together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Fill = Literal["draw", "mean"]
"""the value of a row without terms: a draw from the distribution of the source's rows, or their mean"""


@dataclass(frozen=True)
class Composition:
    """The source rows that make up each target row, and their weights."""

    starts: npt.NDArray[np.int64]
    """[V + 1] where each row's terms begin"""
    ids: npt.NDArray[np.int64]
    """[N] source rows"""
    weights: npt.NDArray[np.float64]
    """[N]"""
    copied: npt.NDArray[np.bool_]
    """[V] whether the row is an unchanged row of the source"""
    fill: Fill = "draw"

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int] | npt.NDArray[np.int64]],
        weights: Sequence[Sequence[float] | npt.NDArray[np.float64]],
        copied: npt.NDArray[np.bool_],
        fill: Fill = "draw",
    ) -> "Composition":
        """Join the terms of all rows."""
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
        empty: npt.NDArray[np.bool_] = self.starts[1:] == self.starts[:-1]
        return empty

    def counts(self) -> dict[str, int]:
        """Return the numbers of rows that are copied, composed of source rows, and drawn; zeros are left out."""
        drawn = int(self.empty.sum()) if self.fill == "draw" else 0
        copied = int(self.copied.sum())
        counts = {"copied": copied, "composed": len(self.copied) - copied - drawn, "drawn": drawn}
        return {how: count for how, count in counts.items() if count}


def compose_rows(source: Tensor, composition: Composition, rows: int, seed: int) -> Tensor:
    """Return the target's table [V, ...], from the source's [S, ...], which is a matrix or (for a bias) a vector.

    Computed in float32, or float64 if the source is. Copied rows do not change. Draws come from N(mean, std) of the
    first `rows` rows of the source, separately for each channel; the rows after them are padding.
    """
    table_SH = source.detach().reshape(len(source), -1)
    table_SH = table_SH if table_SH.dtype == torch.float64 else table_SH.float()
    target_VH = torch.nn.functional.embedding_bag(
        torch.from_numpy(composition.ids).to(source.device),
        table_SH,
        torch.from_numpy(composition.starts).to(source.device),
        mode="sum",
        per_sample_weights=torch.from_numpy(composition.weights).to(table_SH),
        include_last_offset=True,
    )
    empty = torch.from_numpy(composition.empty).to(source.device)
    target_VH[empty] = _filling(table_SH[:rows], int(empty.sum()), composition.fill, seed)
    return target_VH.to(source.dtype).reshape(-1, *source.shape[1:])


def _filling(table_SH: Tensor, count: int, fill: Fill, seed: int) -> Tensor:
    std_H, mean_H = torch.std_mean(table_SH, dim=0)
    match fill:
        case "mean":
            return mean_H.expand(count, -1)
        case "draw":
            # on the processor, so that the draws are the same on every device
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(count, len(mean_H), generator=generator, dtype=table_SH.dtype)
            return mean_H + std_H * noise.to(table_SH.device)
        case _:
            assert_never(fill)
