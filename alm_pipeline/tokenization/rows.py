"""Encoded examples: a single one as arrays, and a batch as the flat columns that a shard is written from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.columns import join_rows, list_array
from storage.schemas import TokenKind

Ints = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)
UNREAD_ARGUMENT = "unread_argument."
"""begins the names under which conversations with an argument are counted that the template does not read"""


@dataclass(frozen=True)
class Uncovered:
    """The bytes of an example's text that no token covers: bytes[k] of them come right before token at[k]."""

    at: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    bytes: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def between(cls, starts: Ints, ends: Ints, total: int) -> "Uncovered":
        """Return the gaps between spans of a text of `total` bytes."""
        gaps = np.append(starts, total) - np.insert(ends, 0, 0)
        at = np.flatnonzero(gaps)
        return cls(at, gaps[at])


@dataclass(frozen=True)
class EncodedExample:
    """The tokens of one example. The byte lengths and the uncovered bytes add up to the example's text."""

    token_ids: npt.NDArray[np.int32]
    byte_lengths: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]
    """TokenKind"""
    turns: npt.NDArray[np.int16]
    uncovered: Uncovered = field(default_factory=Uncovered)
    roles: tuple[str, ...] = ()
    turn_bytes: tuple[int, ...] = ()
    """the bytes of the text in each turn, in the order of the roles"""


@dataclass(frozen=True)
class EncodedBatch:
    """The tokens of N examples, concatenated. An example that was dropped has none."""

    offsets: Ints
    """[N + 1] where the tokens of each example begin"""
    token_ids: npt.NDArray[np.int32]
    byte_lengths: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]
    turns: npt.NDArray[np.int16]
    uncovered: dict[int, Uncovered]
    """by row; most rows have none"""
    roles: Sequence[tuple[str, ...]]
    turn_bytes: Sequence[tuple[int, ...]]
    dropped: Sequence[str | None]
    """why each example has no tokens; None if it has"""

    @classmethod
    def of(cls, rows: Sequence[EncodedExample | str]) -> "EncodedBatch":
        """Return the batch of single rows. A row may be the reason why its example was dropped."""
        examples = [row if isinstance(row, EncodedExample) else _NO_TOKENS for row in rows]
        return cls(
            offsets=_offsets([len(row.token_ids) for row in examples]),
            token_ids=_concatenated([row.token_ids for row in examples], np.int32),
            byte_lengths=_concatenated([row.byte_lengths for row in examples], np.int32),
            kinds=_concatenated([row.kinds for row in examples], np.uint8),
            turns=_concatenated([row.turns for row in examples], np.int16),
            uncovered={index: row.uncovered for index, row in enumerate(examples) if len(row.uncovered.at)},
            roles=[row.roles for row in examples],
            turn_bytes=[row.turn_bytes for row in examples],
            dropped=[row if isinstance(row, str) else None for row in rows],
        )

    @classmethod
    def join(cls, batches: Sequence["EncodedBatch"]) -> "EncodedBatch":
        """Concatenate batches."""
        first_rows = _offsets([len(batch) for batch in batches])
        return cls(
            offsets=_offsets(_concatenated([np.diff(batch.offsets) for batch in batches], np.int64)),
            token_ids=_concatenated([batch.token_ids for batch in batches], np.int32),
            byte_lengths=_concatenated([batch.byte_lengths for batch in batches], np.int32),
            kinds=_concatenated([batch.kinds for batch in batches], np.uint8),
            turns=_concatenated([batch.turns for batch in batches], np.int16),
            uncovered={
                int(first) + row: run
                for first, batch in zip(first_rows, batches, strict=False)
                for row, run in batch.uncovered.items()
            },
            roles=[roles for batch in batches for roles in batch.roles],
            turn_bytes=[sizes for batch in batches for sizes in batch.turn_bytes],
            dropped=[reason for batch in batches for reason in batch.dropped],
        )

    def __len__(self) -> int:
        return len(self.dropped)

    def row_ids(self, row: int) -> npt.NDArray[np.int32]:
        """Return the ids of a row."""
        return self.token_ids[self.offsets[row] : self.offsets[row + 1]]

    def text_bytes(self, row: int) -> int:
        """Return the bytes of a row's text; 0 if it was dropped."""
        covered = self.byte_lengths[self.offsets[row] : self.offsets[row + 1]].sum(dtype=np.int64)
        return int(covered + self.uncovered.get(row, Uncovered()).bytes.sum())

    def example(self, row: int) -> EncodedExample | str:
        """Return one row, or the reason why its example was dropped."""
        if reason := self.dropped[row]:
            return reason
        span = slice(self.offsets[row], self.offsets[row + 1])
        arrays = (self.token_ids[span], self.byte_lengths[span], self.kinds[span], self.turns[span])
        return EncodedExample(*arrays, self.uncovered.get(row, Uncovered()), self.roles[row], self.turn_bytes[row])

    def columns(self) -> dict[str, Any]:
        """Return the columns of a tokens dataset, without the ids."""
        uncovered = [self.uncovered.get(row, Uncovered()) for row in range(len(self))] if self.uncovered else []
        runs = [(run.at, run.bytes) for run in uncovered] or [(Uncovered().at,) * 2] * len(self)
        return {
            "token_ids": list_array(self.token_ids, self.offsets, pa.int32()),
            "byte_lengths": list_array(self.byte_lengths, self.offsets, pa.int32()),
            "kinds": list_array(self.kinds, self.offsets, pa.uint8()),
            "turns": self._turns_column(),
            "roles": pa.array([list(roles) for roles in self.roles], _ROLES),
            "turn_bytes": pa.array([list(sizes) for sizes in self.turn_bytes], _TURN_BYTES),
            "uncovered_at": join_rows([at for at, _ in runs], pa.int32()),
            "uncovered_bytes": join_rows([size for _, size in runs], pa.int32()),
            "dropped": pa.array(self.dropped, pa.string()),
        }

    def _turns_column(self) -> pa.ListArray:
        """Return empty lists for plain texts: writing and reading turns of -1 took a tenth of a shard's time."""
        if any(self.roles):
            return list_array(self.turns, self.offsets, pa.int16())
        return list_array(self.turns[:0], np.zeros_like(self.offsets), pa.int16())


_NO_TOKENS = EncodedExample(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(0, np.int16))
_ROLES = pa.list_(pa.field("item", pa.string(), nullable=False))
_TURN_BYTES = pa.list_(pa.field("item", pa.int32(), nullable=False))


def _offsets(counts: Sequence[int] | Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _concatenated(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)


def surround(batch: EncodedBatch, before: Sequence[int], after: Sequence[int]) -> EncodedBatch:
    """Return the batch without the tokens of dropped rows, and with these special tokens around all other rows.

    The outermost special tokens begin and end the text. None of them covers a byte.
    """
    kept = np.array([reason is None for reason in batch.dropped], dtype=bool)
    if kept.all() and not before and not after:
        return batch
    counts = np.diff(batch.offsets)
    offsets = _offsets(np.where(kept, counts + len(before) + len(after), 0))
    starts, ends = offsets[:-1][kept], offsets[1:][kept]
    edges = [(starts + k, id_, _edge(k, TokenKind.BEGIN_OF_TEXT)) for k, id_ in enumerate(before)]
    edges += [(ends - 1 - k, id_, _edge(k, TokenKind.END_OF_TEXT)) for k, id_ in enumerate(reversed(after))]
    is_body = np.ones(offsets[-1], dtype=bool)
    for at, _, _ in edges:
        is_body[at] = False
    body = np.repeat(kept, counts)

    def spread(values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        array = np.zeros(len(is_body), values.dtype)
        array[is_body] = values[body]
        return array

    ids, kinds = spread(batch.token_ids), spread(batch.kinds)
    for at, id_, kind in edges:
        ids[at], kinds[at] = id_, kind
    return replace(
        batch,
        offsets=offsets,
        token_ids=ids,
        byte_lengths=spread(batch.byte_lengths),
        kinds=kinds,
        turns=np.full(len(is_body), -1, np.int16),
        uncovered={
            row: Uncovered(run.at + len(before), run.bytes) for row, run in batch.uncovered.items() if kept[row]
        },
    )


def _edge(distance: int, kind: TokenKind) -> TokenKind:
    return TokenKind.TEMPLATE if distance else kind
