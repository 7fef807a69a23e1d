"""The positions of packed examples that predict a token, and the pairs of positions that are compared.

Shapes: N positions of the student's flattened rows, M of the teacher's, E examples, K selected positions. Position i
predicts token i + 1.
"""

import torch
from torch import Tensor


def predicting_positions(predicted_N: Tensor, example_of_token_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions [K] that predict a token that counts, example after example, and their examples [K]."""
    tokens_K = torch.nonzero(predicted_N & (example_of_token_N >= 0)).squeeze(-1)
    example_K, order_K = torch.sort(example_of_token_N[tokens_K], stable=True)
    return tokens_K[order_K] - 1, example_K


def pair_by_rank(teacher_example_K: Tensor, example_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices into both sides: the k-th position of an example is paired with its k-th on the other side.

    Both inputs are ascending. The surplus of the side with more positions is left out.
    """
    sizes = _positions_by_example(teacher_example_K, example_K)
    shorter_E = torch.minimum(*sizes)
    rank = torch.arange(int(shorter_E.sum()), device=example_K.device)
    rank = rank - (shorter_E.cumsum(0) - shorter_E).repeat_interleave(shorter_E)
    teacher, student = ((size.cumsum(0) - size).repeat_interleave(shorter_E) + rank for size in sizes)
    return teacher, student


def shared_examples(teacher_example_K: Tensor, example_K: Tensor) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Return masks [K] of the positions whose example is on both sides, and the positions per example on both sides."""
    sizes = _positions_by_example(teacher_example_K, example_K)
    shared_E = (sizes[0] > 0) & (sizes[1] > 0)
    teacher_sizes, student_sizes = (size[shared_E].tolist() for size in sizes)
    return shared_E[teacher_example_K], shared_E[example_K], teacher_sizes, student_sizes


def _positions_by_example(teacher_example_K: Tensor, example_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of positions of each example on both sides, [E] and [E]."""
    examples = 1 + int(torch.cat([teacher_example_K, example_K, example_K.new_zeros(1)]).max())
    teacher_E, student_E = (torch.bincount(ids, minlength=examples) for ids in (teacher_example_K, example_K))
    return teacher_E, student_E


def divided(total: Tensor, count: int | Tensor | None, compared: int) -> Tensor:
    """Return a sum divided by `count`, that of the global batch, or if it is None by the number that was compared."""
    return total / (max(1, compared) if count is None else count)
