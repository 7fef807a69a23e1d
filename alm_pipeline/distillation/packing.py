"""Examples packed into rows, and rows into the tensors of a batch.

Each example goes into the first row with room, and a batch is full when none has; so a batch is a run of examples in
the stream's order. An example longer than a row is a batch alone, as soon as its turn comes. So the place of a batch
is where its run begins, and how many long examples within the run are batches before it.

Shapes: B rows, S positions a row, N = B·S positions, C chunks of the batch.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alm_pipeline.distillation.examples import Examples

Ints = npt.NDArray[np.integer[Any]]


class Place(NamedTuple):
    """The place between two batches."""

    example: int = 0
    """the first that is in no batch before"""
    alone: int = 0
    """so many long examples behind it are batches before"""


class Group(NamedTuple):
    """The examples of a batch, in the order of rows."""

    examples: Ints
    """[E]"""
    rows: Ints
    """[E] ascending"""


class FlatBatch(NamedTuple):
    """The arrays of a batch, which `Batch` tells of; rows one after the other."""

    token_ids: Ints
    position_ids: Ints
    predicted: npt.NDArray[np.bool_]
    chunk_of_token: Ints
    last_token: Ints
    teacher_logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """One step's examples, packed into rows; padding is at the ends of rows."""

    token_ids_BS: Tensor
    position_ids_BS: Tensor
    """begin again at 0 with each example"""
    predicted_N: Tensor
    """the token has a predecessor in its example, and is no padding"""
    chunk_of_token_N: Tensor
    """−1 where the token is in no chunk that counts"""
    last_token_C: Tensor
    """positions among the N"""
    teacher_logprobs_C: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.__dict__)


def next_group(lengths: Ints, place: Place, batch_tokens: int, row_tokens: int) -> tuple[Group, Place] | None:
    """The batch that follows a place among examples of these lengths, and the place behind it.

    None where more examples could still join it.
    """
    from alm_pipeline.distillation.packing_kernel import find_group  # numba takes seconds to import

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


def make_batch(examples: Examples, group: Group) -> Batch:
    """The tensors of packed examples."""
    from alm_pipeline.distillation.packing_kernel import fill_batch

    lengths = np.diff(examples.token_offsets)[group.examples]
    height, width = int(group.rows[-1]) + 1, int(np.bincount(group.rows, lengths).max())
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
    return Batch(ids.view(height, width), positions.view(height, width), *rest)
