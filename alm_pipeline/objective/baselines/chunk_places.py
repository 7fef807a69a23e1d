"""Where aligned chunks and their tokens are in a batch, for the rivals that compare distributions chunk by chunk.

Shapes: A chunks; of one side N positions, and T tokens of all chunks.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class SidePlaces(NamedTuple):
    """The tokens of chunks on one side. A token is predicted at the position before it."""

    first_A: Tensor
    """the position of each chunk's first token"""
    last_A: Tensor
    """that of its last"""

    def of(self, compared_A: Tensor) -> "SidePlaces":
        """Return the places of some of the chunks."""
        return SidePlaces(self.first_A[compared_A], self.last_A[compared_A])

    def tokens(self) -> tuple[Tensor, Tensor]:
        """([T], [T]) the position of each token of the chunks, one chunk after another, and the chunk's number."""
        counts_A = self.last_A - self.first_A + 1
        chunk_T = torch.repeat_interleave(torch.arange(len(counts_A), device=counts_A.device), counts_A)
        within_T = torch.arange(len(chunk_T), device=counts_A.device) - (counts_A.cumsum(0) - counts_A)[chunk_T]
        return self.first_A[chunk_T] + within_T, chunk_T

    def sums(self, values_T: Tensor, chunk_T: Tensor) -> Tensor:
        """[A] the sums of values of the chunks' tokens."""
        return values_T.new_zeros(len(self.first_A)).index_add(0, chunk_T, values_T)


def predicted_chunks(
    teacher: SidePlaces, student: SidePlaces, teacher_predicted_M: Tensor, predicted_N: Tensor
) -> Tensor:
    """[A] whether the first tokens of a chunk, and so all of them, have a prediction on both sides."""
    return teacher_predicted_M[teacher.first_A] & predicted_N[student.first_A]


def one_to_one(mapping_V: Tensor, teacher_rows: int, student_rows: int) -> tuple[Tensor, Tensor]:
    """([L], [L]) the student's and the teacher's ids of tokens of the same bytes, each id at most once.

    `mapping_V` is that of `same_bytes_mapping`. Ids beyond the rows of a head are left out.
    """
    mapping_V = mapping_V[:student_rows]
    ids_L = torch.nonzero((mapping_V >= 0) & (mapping_V < teacher_rows)).squeeze(-1)
    teacher_L, order = torch.sort(mapping_V[ids_L], stable=True)
    is_first = torch.ones_like(teacher_L, dtype=torch.bool)
    is_first[1:] = teacher_L[1:] != teacher_L[:-1]
    return ids_L[order][is_first], teacher_L[is_first]
