"""The chunks of an example as training reads them, under each form of debiasing, and where they are in both sides.

A *form* says what a chunk's target is, of the tokens up to position i and up to position j of one side (A: log P of the
tokens so far, P: log P of a boundary token next, D = A + P):

- `none`: A_j − A_i;
- `end`: A_j + P_j − A_i, as in the paper;
- `both`: D_j − D_i, where i is the last anchor at or before the chunk's start (`merged_chunks` says which). Directly
  after scaffold, and where the last anchor is too far away, it is D_j − A_i.

Its exact value is a difference of byte-prefix sums of the same text: log P(b[:j] | b[:i]) for `none`,
log P(b[:j] and a boundary | b[:i]) for `end`, and log P(b[:j] and a boundary | b[:i] and a boundary) for `both`.
"""

from collections.abc import Mapping
from typing import NamedTuple, assert_never, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.audit.stretches import ExactSide
from alm_pipeline.config import Debias, ObjectiveConfig
from alm_pipeline.exactness.prefix_sums import PrefixSums
from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.training.data.examples import aligned_examples
from storage.columns import flatten_lists

FORMS: tuple[Debias, ...] = get_args(Debias)
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Edges(NamedTuple):
    """The ends of an example's C aligned chunks, before merging: what is before each of them, and after the last."""

    teacher: Ints
    """[C + 1] tokens"""
    student: Ints
    bytes: Ints
    flags: npt.NDArray[np.uint8]
    """[C] ChunkEnd"""

    @classmethod
    def of(cls, alignments: pa.Table) -> "Edges":
        """Return those of a table with a single example."""
        names = ("teacher_tokens", "student_tokens", "byte_lengths")
        counts = (flatten_lists(alignments[name])[0].astype(np.int64) for name in names)
        teacher, student, sizes = (np.concatenate([[0], np.cumsum(of_chunk)]) for of_chunk in counts)
        return cls(teacher, student, sizes, flatten_lists(alignments["ends"])[0])


class FormChunks(NamedTuple):
    """An example's chunks under one form: K pairs of edges, with what the teacher's stored scores make of them."""

    starts: Ints
    """[K] the index of an edge"""
    ends: Ints
    starts_debiased: npt.NDArray[np.bool_]
    """[K] whether the target is given a boundary at the start"""
    stored: Floats
    """[K] the teacher's target in training"""


def chunks_of_form(
    tables: Mapping[str, pa.Table], objective: ObjectiveConfig, form: Debias, ends: ChunkEnds | None
) -> FormChunks:
    """Return the chunks of the single example in these tables (see `aligned_examples`), as training reads them."""
    edges = Edges.of(tables["alignments"])
    rows = aligned_examples(tables, objective.model_copy(update={"debias": form}), ends)
    if not rows.num_rows:
        none = np.zeros(0, np.int64)
        return FormChunks(none, none, np.zeros(0, np.bool_), np.zeros(0))
    names = ("student_starts", "student_ends", "starts_debiased", "logprobs")
    starts, stops, debiased, stored = (flatten_lists(rows[name])[0] for name in names)
    return FormChunks(
        # an unpaired chunk before it may have no token of the student
        np.searchsorted(edges.student, starts, side="right") - 1,
        np.searchsorted(edges.student, stops, side="left"),
        debiased.astype(np.bool_),
        stored.astype(np.float64),
    )


class Targets(NamedTuple):
    """One side's targets of K chunks: by its tokens, and by byte-prefix sums."""

    is_covered: npt.NDArray[np.bool_]
    """[K] whether the chunk lies within one stretch; the others have no numbers"""
    value: Floats
    """[K] by the side's tokens, in nats"""
    exact: Floats
    left_out: Floats
    """[K] of the exact value: the largest share that sequences off the path, not followed, have at any of its bytes"""


def targets(side: ExactSide, tokens: Ints, chunks: FormChunks, form: Debias) -> Targets:
    """Return the targets of a form; `tokens` is the number of the side's tokens before each edge."""
    count = len(chunks.starts)
    result = Targets(np.zeros(count, np.bool_), *(np.full(count, np.nan) for _ in range(3)))
    for number in range(count):
        first, last = int(tokens[chunks.starts[number]]), int(tokens[chunks.ends[number]])
        debiased = bool(chunks.starts_debiased[number])
        for span, sums in zip(side.spans, side.sums, strict=True):
            if span.first <= first < last <= span.last:
                i, j = (int(side.example.ends[token]) - span.start for token in (first, last))
                result.is_covered[number] = True
                result.value[number] = _value(side, first, last, form, debiased)
                result.exact[number], result.left_out[number] = _exact(sums, i, j, form, debiased)
    return result


def _value(side: ExactSide, first: int, last: int, form: Debias, debiased: bool) -> float:
    tokens, boundary = side.cumulative, side.boundary
    difference = float(tokens[last - 1] - tokens[first - 1])
    match form:
        case "none":
            return difference
        case "end":
            return difference + float(boundary[last - 1])
        case "both":
            return difference + float(boundary[last - 1]) - (float(boundary[first - 1]) if debiased else 0)
        case _:
            assert_never(form)


def _exact(sums: PrefixSums, i: int, j: int, form: Debias, debiased: bool) -> tuple[float, float]:
    """Return the exact value from byte i to j, and the largest share that is left out of it."""
    upper = sums.logprobs[j] if form == "none" else sums.boundary_logprobs[j]
    lower = sums.boundary_logprobs[i] if form == "both" and debiased else sums.logprobs[i]
    shares = [*sums.left_out[i:j]]
    if form != "none":
        shares.append(sums.boundary_left_out[j])
    if form == "both" and debiased:
        shares.append(sums.boundary_left_out[i])
    return float(upper - lower), float(max(shares))
