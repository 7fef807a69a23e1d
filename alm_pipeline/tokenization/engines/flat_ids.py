"""The ids of several texts as two arrays, without a Python object per token."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class FlatIds:
    """The ids of N texts, concatenated."""

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    """[N + 1] where the ids of each text begin"""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "FlatIds":
        """Return the ids of these texts."""
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        # twice as fast as NumPy's conversion of lists to an array
        packed = b"".join(struct.pack(f"={len(row)}i", *row) for row in rows)
        return cls(np.frombuffer(packed, np.int32), _offsets(counts))

    @classmethod
    def join(cls, parts: Sequence["FlatIds"]) -> "FlatIds":
        """Concatenate the texts of several parts."""
        if len(parts) == 1:
            return parts[0]
        counts = [np.diff(part.offsets) for part in parts]
        return cls(_joined([part.ids for part in parts], np.int32), _offsets(_joined(counts, np.int64)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> npt.NDArray[np.int32]:
        """Return the ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def lists(self) -> list[list[int]]:
        """Return the ids of each text as lists."""
        ids, offsets = self.ids.tolist(), self.offsets.tolist()
        return [ids[start:end] for start, end in pairwise(offsets)]

    def first_difference(self, other: "FlatIds") -> int | None:
        """Return the first text that has other ids there, or None. Both are of the same texts."""
        assert len(self) == len(other), "an engine lost a text"
        if np.array_equal(self.ids, other.ids) and np.array_equal(self.offsets, other.offsets):
            return None
        return next(index for index in range(len(self)) if not np.array_equal(self.row(index), other.row(index)))


def _offsets(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
