"""Examples packed into rows, and rows into the tensors of a batch.

Each example goes into the first row with room, and a batch is full when none has; so a batch is a run of examples in
the stream's order. An example longer than a row is a batch alone, as soon as its turn comes. So the place of a batch
is where its run begins, and how many long examples within the run are batches before it.

Shapes: B rows, S positions a row, N = B·S positions, C chunks of the batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alm_pipeline.training.data.arrays import Examples, FlatBatch, Group, Ints, TeacherTokens


class Place(NamedTuple):
    """The place between two batches."""

    example: int = 0
    """the first that is in no batch before"""
    alone: int = 0
    """so many long examples behind it are batches before"""


@dataclass(frozen=True)
class Batch:
    """One step's examples, packed into rows; padding is at the ends of rows."""

    token_ids_BS: Tensor
    position_ids_BS: Tensor
    """begin again at 0 with each example; 0 in padding, so that none is beyond what a model has learned"""
    predicted_N: Tensor
    """the token counts for the student's own likelihood: it has a predecessor in its example, and is no padding"""
    chunk_of_token_N: Tensor
    """−1 where the token is in no chunk that counts"""
    last_token_C: Tensor
    """positions among the N"""
    teacher_logprobs_C: Tensor
    aligned: Tensor
    """the number of aligned chunks before merging"""
    used: Tensor
    """how many of those are in a chunk that counts"""


@dataclass(frozen=True)
class TeacherBatch:
    """The same examples as the teacher reads them, in rows of its own, and where both sides' chunks end.

    Shapes: T positions a row of the teacher, M = B·T positions, A aligned chunks, not merged.
    """

    teacher_token_ids_BT: Tensor
    teacher_position_ids_BT: Tensor
    teacher_predicted_M: Tensor
    example_of_token_N: Tensor
    """of the batch, in the order of rows; −1: padding"""
    example_of_teacher_token_M: Tensor
    aligned_token_A: Tensor
    """positions among the N: the last token of each aligned chunk"""
    aligned_teacher_token_A: Tensor
    """among the M"""
    single_A: Tensor
    """the chunk is of one token on either side"""


def next_group(lengths: Ints, place: Place, batch_tokens: int, row_tokens: int) -> tuple[Group, Place] | None:
    """The batch that follows a place among examples of these lengths, and the place behind it.

    None where more examples could still join it.
    """
    from alm_pipeline.training.data.kernel import find_group  # numba takes seconds to import

    rows = np.empty(len(lengths) - place.example, np.int32)
    end, long = find_group(lengths, *place, max(1, batch_tokens // row_tokens), row_tokens, rows)
    if long >= 0:
        following = Place(long + 1) if long == place.example else Place(place.example, place.alone + 1)
        return Group(np.array([long]), np.zeros(1, np.int32)), following
    if end < 0:
        return None
    rows = rows[: end - place.example]
    # a long example has no row: it was a batch before
    order = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
    return Group(place.example + order, rows[order]), Place(end)


def all_groups(lengths: Ints, batch_tokens: int, row_tokens: int) -> list[Group]:
    """All examples of these lengths in batches; the last holds what is left."""
    # rows full of nothing behind the last example close its batch
    rows = max(1, batch_tokens // row_tokens)
    padded, place, groups = np.concatenate([lengths, np.full(rows + 1, row_tokens)]), Place(), list[Group]()
    while place.example < len(lengths) and (found := next_group(padded, place, batch_tokens, row_tokens)):
        group, place = found
        real = group.examples < len(lengths)
        groups.append(Group(group.examples[real], group.rows[real]))
    return groups


def make_batch(examples: Examples, group: Group) -> Batch:
    """The tensors of packed examples."""
    from alm_pipeline.training.data.kernel import fill_batch

    lengths = np.diff(examples.token_offsets)[group.examples]
    height, width = _shape(group.rows, lengths)
    chunks = int(np.diff(examples.chunks.offsets)[group.examples].sum())
    flat = FlatBatch(
        token_ids=np.zeros(height * width, np.int64),
        position_ids=np.zeros(height * width, np.int64),
        predicted=np.zeros(height * width, np.bool_),
        chunk_of_token=np.full(height * width, -1, np.int64),
        last_token=np.empty(chunks, np.int64),
        teacher_logprobs=np.empty(chunks, np.float32),
    )
    fill_batch(examples, group, width, flat)
    ids, positions, *rest = map(torch.from_numpy, flat)
    counts = (torch.tensor(int(of[group.examples].sum())) for of in (examples.chunks.aligned, examples.chunks.used))
    return Batch(ids.view(height, width), positions.view(height, width), *rest, *counts)


def make_teacher_batch(examples: Examples, teacher: TeacherTokens, group: Group) -> TeacherBatch:
    """What the teacher needs of a batch that `make_batch` made of the same group."""
    own, others = (
        _Layout.of(np.diff(offsets)[group.examples], group.rows)
        for offsets in (examples.token_offsets, teacher.offsets)
    )
    tokens = _ranges(teacher.offsets, group.examples)
    ids, predicted = np.zeros(others.size, np.int64), np.zeros(others.size, np.bool_)
    ids[others.places] = teacher.ids[tokens]
    predicted[others.places] = teacher.learned[tokens] if len(teacher.learned) else True
    predicted[others.starts] = False
    chunks = _ranges(teacher.aligned_offsets, group.examples)
    counts = np.diff(teacher.aligned_offsets)[group.examples]
    ends = (
        np.repeat(layout.starts, counts) + side[chunks] - 1
        for layout, side in ((own, teacher.student_ends), (others, teacher.teacher_ends))
    )
    rows = (ids.reshape(others.shape), others.positions().reshape(others.shape), predicted)
    arrays = (*rows, own.examples(), others.examples(), *ends, teacher.single[chunks])
    return TeacherBatch(*map(torch.from_numpy, arrays))


def _shape(rows: Ints, lengths: Ints) -> tuple[int, int]:
    """Rows of examples, and positions of each: the longest row's, and up to an eighth more.

    Of few widths, kernels are few: libraries make, tune and keep them for every shape (oneDNN's, on a processor, took
    30 MB of memory a new width).
    """
    longest = int(np.bincount(rows, lengths).max())
    step = 1 << max(0, longest.bit_length() - 4)
    return int(rows[-1]) + 1, -(-longest // step) * step


@dataclass(frozen=True)
class _Layout:
    """Where a batch's examples stand, in rows one after the other."""

    shape: tuple[int, int]
    starts: Ints
    """[E] each example's first position"""
    lengths: Ints
    """[E]"""

    @classmethod
    def of(cls, lengths: Ints, rows: Ints) -> "_Layout":
        height, width = _shape(rows, lengths)
        before = np.cumsum(lengths) - lengths
        first_of_row = before[np.searchsorted(rows, rows)]
        return cls((height, width), rows * width + before - first_of_row, lengths)

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def places(self) -> Ints:
        """[tokens] the position of each."""
        return np.repeat(self.starts, self.lengths) + _counted(self.lengths)

    def examples(self) -> Ints:
        """[positions] the example that stands there, −1 where none does."""
        found = np.full(self.size, -1)
        found[self.places] = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return found

    def positions(self) -> Ints:
        """[positions] counted within each example, 0 where none stands."""
        found = np.zeros(self.size, np.int64)
        found[self.places] = _counted(self.lengths)
        return found


def _ranges(offsets: Ints, chosen: Ints) -> Ints:
    """The indices of the values of chosen rows, one row after the other."""
    lengths = np.diff(offsets)[chosen]
    return np.repeat(offsets[:-1][chosen], lengths) + _counted(lengths)


def _counted(lengths: Ints) -> Ints:
    """0, 1, … for each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
