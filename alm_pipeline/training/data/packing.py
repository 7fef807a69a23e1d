"""ExampleArrays packed into rows, and rows into the tensors of a batch.

Each example goes into the first row with room, and a batch is full when no row has room. A batch is therefore a run of
examples in the stream's order. An example longer than a row becomes a batch of its own as soon as its turn comes. The
position of a batch is thus where its run begins, and how many long examples of the run were already batches.

Shapes: B rows, S positions per row, N = B·S positions, C chunks of the batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alm_pipeline.objective.prefix_arrays import PrefixTargets
from alm_pipeline.training.data.arrays import BatchArrays, BatchPlan, ExampleArrays, Ints, TeacherArrays


class PackingPosition(NamedTuple):
    """A position between two batches."""

    example: int = 0
    """the first example that is not in an earlier batch"""
    alone: int = 0
    """the number of long examples after it that were already batches of their own"""


@dataclass(frozen=True)
class PackedBatch:
    """The examples of one batch, packed into rows. Padding is at the ends of rows."""

    token_ids_BS: Tensor
    position_ids_BS: Tensor
    """restart at 0 with each example; 0 in padding, so that no position exceeds what a model has learned"""
    predicted_N: Tensor
    """whether the token counts for the student's own likelihood: not padding, and not the first of its example"""
    covered_N: Tensor
    """whether the token is in a chunk that counts"""
    first_token_C: Tensor
    """the position (of N) of each chunk's first token; chunks may overlap"""
    last_token_C: Tensor
    """the position (of N) of each chunk's last token"""
    starts_debiased_C: Tensor
    """whether the chunk's likelihood is divided by P(boundary) before it"""
    ends_debiased_C: Tensor
    """whether the chunk's likelihood is multiplied by P(boundary) after it"""
    teacher_logprobs_C: Tensor
    aligned: Tensor
    """the number of aligned chunks before merging"""
    used: Tensor
    """the number of those that are in a chunk that counts"""


@dataclass(frozen=True)
class TeacherBatch:
    """The same examples as teacher tokens, packed into their own rows, and where the chunks end on both sides.

    Shapes: T positions per teacher row, M = B·T positions, A aligned chunks, not merged.
    """

    teacher_token_ids_BT: Tensor
    teacher_position_ids_BT: Tensor
    teacher_predicted_M: Tensor
    example_of_token_N: Tensor
    """the index of the example in the batch, counted in row order; −1 in padding"""
    example_of_teacher_token_M: Tensor
    aligned_token_A: Tensor
    """the position (of N) of each aligned chunk's last student token"""
    aligned_teacher_token_A: Tensor
    """the position (of M) of each aligned chunk's last teacher token"""
    aligned_first_token_A: Tensor
    """the position (of N) of each aligned chunk's first student token"""
    aligned_first_teacher_token_A: Tensor
    """the position (of M) of each aligned chunk's first teacher token"""
    single_A: Tensor
    """whether the chunk has exactly one token on each side"""


@dataclass(frozen=True)
class TargetBatch:
    """What the token after each position of the same examples is compared with (`prefix_targets`).

    Shapes: L student tokens of the longest target.
    """

    target_ids_NL: Tensor
    """different tokens; −1 beyond a target's own, and where there is none"""
    target_probabilities_NL: Tensor
    """0 in unused entries"""


@dataclass(frozen=True)
class SourceBatch:
    """Which source of a mixture each part of the same examples is from. Shapes: K sources."""

    source_C: Tensor
    """the number of each chunk's source"""
    source_examples_K: Tensor
    source_tokens_K: Tensor
    """the student's predicted tokens"""


def plan_next_batch(
    lengths: Ints, position: PackingPosition, batch_tokens: int, row_tokens: int
) -> tuple[BatchPlan, PackingPosition] | None:
    """Return the batch that follows a position among examples of these lengths, and the position after it.

    Returns None if more examples could still join the batch.
    """
    from alm_pipeline.training.data.kernel import find_plan  # numba takes seconds to import

    rows = np.empty(len(lengths) - position.example, np.int32)
    end, long = find_plan(lengths, *position, max(1, batch_tokens // row_tokens), row_tokens, rows)
    if long >= 0:
        is_next = long == position.example
        following = PackingPosition(long + 1) if is_next else PackingPosition(position.example, position.alone + 1)
        return BatchPlan(np.array([long]), np.zeros(1, np.int32)), following
    if end < 0:
        return None
    rows = rows[: end - position.example]
    # a long example has no row: it was already a batch of its own
    order = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
    return BatchPlan(position.example + order, rows[order]), PackingPosition(end)


def plan_batches(lengths: Ints, batch_tokens: int, row_tokens: int) -> list[BatchPlan]:
    """Return the batches that hold all examples of these lengths. The last one holds the rest."""
    # phantom examples as long as a row close the last batch
    rows = max(1, batch_tokens // row_tokens)
    padded = np.concatenate([lengths, np.full(rows + 1, row_tokens)])
    position, plans = PackingPosition(), list[BatchPlan]()
    while position.example < len(lengths) and (
        plan_and_position := plan_next_batch(padded, position, batch_tokens, row_tokens)
    ):
        plan, position = plan_and_position
        real = plan.examples < len(lengths)
        plans.append(BatchPlan(plan.examples[real], plan.rows[real]))
    return plans


def make_batch(examples: ExampleArrays, plan: BatchPlan) -> PackedBatch:
    """Return the tensors of packed examples."""
    from alm_pipeline.training.data.kernel import fill_batch

    lengths = np.diff(examples.token_offsets)[plan.examples]
    height, width = _shape(plan.rows, lengths)
    chunks = int(np.diff(examples.chunks.offsets)[plan.examples].sum())
    flat = BatchArrays(
        token_ids=np.zeros(height * width, np.int64),
        position_ids=np.zeros(height * width, np.int64),
        predicted=np.zeros(height * width, np.bool_),
        covered=np.zeros(height * width, np.bool_),
        first_token=np.empty(chunks, np.int64),
        last_token=np.empty(chunks, np.int64),
        starts_debiased=np.empty(chunks, np.bool_),
        ends_debiased=np.empty(chunks, np.bool_),
        teacher_logprobs=np.empty(chunks, np.float32),
    )
    fill_batch(examples, plan, width, flat)
    ids, positions, *rest = map(torch.from_numpy, flat)
    counts = (torch.tensor(int(of[plan.examples].sum())) for of in (examples.chunks.aligned, examples.chunks.used))
    return PackedBatch(ids.view(height, width), positions.view(height, width), *rest, *counts)


def make_teacher_batch(examples: ExampleArrays, teacher: TeacherArrays, plan: BatchPlan) -> TeacherBatch:
    """Return what the teacher needs of the batch that `make_batch` makes of the same plan."""
    teacher_layout, student_layout = (
        _Layout.of(np.diff(offsets)[plan.examples], plan.rows) for offsets in (teacher.offsets, examples.token_offsets)
    )
    chunks = _flat_indices(teacher.aligned_offsets, plan.examples)
    counts = np.diff(teacher.aligned_offsets)[plan.examples]
    student_last, teacher_last = (
        np.repeat(layout.starts, counts) + ends[chunks] - 1
        for layout, ends in ((student_layout, teacher.student_ends), (teacher_layout, teacher.teacher_ends))
    )
    student_first, teacher_first = (
        last - tokens[chunks].astype(np.int64) + 1
        for last, tokens in ((student_last, teacher.student_counts), (teacher_last, teacher.teacher_counts))
    )
    arrays = (
        *_teacher_rows(teacher, plan, teacher_layout),
        student_layout.examples(),
        teacher_layout.examples(),
        student_last,
        teacher_last,
        student_first,
        teacher_first,
        (student_first == student_last) & (teacher_first == teacher_last),
    )
    return TeacherBatch(*map(torch.from_numpy, arrays))


def make_target_batch(examples: ExampleArrays, targets: PrefixTargets, plan: BatchPlan) -> TargetBatch:
    """Return the targets of the batch that `make_batch` makes of the same plan."""
    layout = _Layout.of(np.diff(examples.token_offsets)[plan.examples], plan.rows)
    chosen, counts = _flat_indices(targets.offsets, plan.examples), np.diff(targets.offsets)[plan.examples]
    # the position before a token predicts it
    positions = np.repeat(layout.starts, counts) + targets.tokens[chosen] - 1
    sizes = targets.sizes[chosen].astype(np.int64)
    entries = _flat_indices(np.concatenate([[0], np.cumsum(targets.sizes, dtype=np.int64)]), chosen)
    places = np.repeat(positions, sizes), _indices_within(sizes)
    shape = (layout.size, int(sizes.max(initial=1)))
    ids, probabilities = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
    ids[places], probabilities[places] = targets.ids[entries], targets.probabilities[entries]
    return TargetBatch(torch.from_numpy(ids), torch.from_numpy(probabilities))


def make_source_batch(examples: ExampleArrays, sources: Ints, plan: BatchPlan, count: int) -> SourceBatch:
    """Return the sources of the batch that `make_batch` makes of the same plan; `sources` has each example's."""
    chosen = sources[plan.examples].astype(np.int64)
    chunks = np.diff(examples.chunks.offsets)[plan.examples]
    if len(examples.learned):
        learned = np.concatenate([[0], np.cumsum(examples.learned)])
        firsts = examples.token_offsets[plan.examples] + 1  # which are not predicted
        tokens = learned[examples.token_offsets[plan.examples + 1]] - learned[firsts]
    else:
        tokens = np.diff(examples.token_offsets)[plan.examples] - 1
    arrays = (
        np.repeat(chosen, chunks),
        np.bincount(chosen, minlength=count),
        np.bincount(chosen, tokens, minlength=count).astype(np.int64),
    )
    return SourceBatch(*map(torch.from_numpy, arrays))


def _teacher_rows(
    teacher: TeacherArrays, plan: BatchPlan, layout: "_Layout"
) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Return token ids and positions [B, T], and which tokens are predicted [M]."""
    tokens = _flat_indices(teacher.offsets, plan.examples)
    ids, predicted = np.zeros(layout.size, np.int64), np.zeros(layout.size, np.bool_)
    ids[layout.places] = teacher.ids[tokens]
    predicted[layout.places] = teacher.learned[tokens] if len(teacher.learned) else True
    predicted[layout.starts] = False
    return ids.reshape(layout.shape), layout.positions().reshape(layout.shape), predicted


def _shape(rows: Ints, lengths: Ints) -> tuple[int, int]:
    """Return the number of rows and their width: the longest row's length, rounded up by at most an eighth.

    Few widths mean few kernels: libraries build, tune and keep kernels for every shape (oneDNN on a CPU took 30 MB of
    memory per new width).
    """
    longest = int(np.bincount(rows, lengths).max())
    step = 1 << max(0, longest.bit_length() - 4)
    return int(rows[-1]) + 1, -(-longest // step) * step


@dataclass(frozen=True)
class _Layout:
    """Where the examples of a batch are in its concatenated rows."""

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
        """[tokens] each token's position"""
        return np.repeat(self.starts, self.lengths) + _indices_within(self.lengths)

    def examples(self) -> Ints:
        """[positions] the example at each position; −1 in padding"""
        example_of_position = np.full(self.size, -1)
        example_of_position[self.places] = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return example_of_position

    def positions(self) -> Ints:
        """[positions] counted within each example; 0 in padding"""
        position_ids = np.zeros(self.size, np.int64)
        position_ids[self.places] = _indices_within(self.lengths)
        return position_ids


def _flat_indices(offsets: Ints, chosen: Ints) -> Ints:
    """Return the indices of all values of the chosen lists, one list after the other."""
    lengths = np.diff(offsets)[chosen]
    return np.repeat(offsets[:-1][chosen], lengths) + _indices_within(lengths)


def _indices_within(lengths: Ints) -> Ints:
    """Return 0, 1, … for each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
