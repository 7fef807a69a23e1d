"""What a network reads: the pieces of each new token, and the source model's rows, standardized.

Shapes: S source tokens, T new tokens, N pieces of all of them, F channels of all tables together, W of one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """The source tokens that spell each of T new tokens, at least one each."""

    starts: Tensor
    """[T + 1] where each token's pieces begin"""
    ids: Tensor
    """[N]"""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device | None = None) -> "Pieces":
        """Return the pieces of these tokens. Raises ValueError for a token without any."""
        sizes = np.array([len(row) for row in rows], np.int64)
        if not sizes.all():
            raise ValueError("a token without pieces has no row to predict")
        starts = np.concatenate([[0], np.cumsum(sizes)])
        ids = np.fromiter((id_ for row in rows for id_ in row), np.int64, int(starts[-1]))
        return cls(torch.from_numpy(starts).to(device), torch.from_numpy(ids).to(device))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> Tensor:
        """[T]"""
        return self.starts.diff()

    def first(self) -> Tensor:
        """[T] the id of each token's first piece"""
        return self.ids[self.starts[:-1]]

    def last(self) -> Tensor:
        """[T]"""
        return self.ids[self.starts[1:] - 1]

    def padded(self, most: int) -> tuple[Tensor, Tensor]:
        """Return the ids of the first `most` pieces [T, most], and which of them exist."""
        places = self.starts[:-1, None] + torch.arange(most, device=self.ids.device)
        exists = places < self.starts[1:, None]
        return self.ids[places.clamp(max=len(self.ids) - 1)].where(exists, 0), exists

    def means(self, table_SW: Tensor) -> Tensor:
        """[T, W] the mean row of each token's pieces, computed as FVT's composition is, to the same bits."""
        weights_N = (1 / self.counts.double()).repeat_interleave(self.counts).to(table_SW)
        return F.embedding_bag(
            self.ids, table_SW, self.starts, mode="sum", per_sample_weights=weights_N, include_last_offset=True
        )

    def slice(self, rows: slice) -> "Pieces":
        """Return the pieces of some consecutive tokens."""
        starts = self.starts[rows.start : rows.stop + 1]
        return Pieces(starts - starts[0], self.ids[starts[0] : starts[-1]])


@dataclass(frozen=True)
class SourceTables:
    """The source model's tables by token: embedding, head unless it is tied, and its bias, as float32 matrices."""

    tables: tuple[Tensor, ...]
    """[S, W] each"""
    standard_SF: Tensor
    """all tables side by side, each channel with the mean 0 and the standard deviation 1"""
    scales: tuple[Tensor, ...]
    """[W] each: the standard deviations"""

    @classmethod
    def of(cls, values: Sequence[Tensor], rows: int) -> "SourceTables":
        """`values` are tables [S, W] or biases [S]. Rows from `rows` on are padding, and do not count in the means."""
        tables = tuple(value.detach().reshape(len(value), -1).float() for value in values)
        standard, scales = [], []
        for table_SW in tables:
            std_W, mean_W = torch.std_mean(table_SW[:rows], dim=0)
            scales.append(std_W.clamp(min=torch.finfo(torch.float32).tiny))
            standard.append((table_SW - mean_W) / scales[-1])
        return cls(tables, torch.cat(standard, -1), tuple(scales))

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(table.shape[1] for table in self.tables)
