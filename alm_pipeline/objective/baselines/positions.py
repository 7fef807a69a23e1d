"""Which positions of packed examples predict a token, and which of both sides stand beside each other.

Shapes: N positions of the student's rows flattened, M of the teacher's, E examples, K chosen positions. Position i
predicts token i + 1.
"""

import torch
from torch import Tensor


def predicting_positions(predicted_N: Tensor, example_of_token_N: Tensor) -> tuple[Tensor, Tensor]:
    """([K], [K]) positions that predict a token that counts, example after example, and their examples."""
    tokens_K = torch.nonzero(predicted_N & (example_of_token_N >= 0)).squeeze(-1)
    example_K, order_K = torch.sort(example_of_token_N[tokens_K], stable=True)
    return tokens_K[order_K] - 1, example_K


def pair_by_rank(teacher_example_K: Tensor, example_K: Tensor) -> tuple[Tensor, Tensor]:
    """Indices into both: the k-th of an example on one side and the k-th of the same example on the other.

    Both are ascending; of each example, what one side has more than the other is left out.
    """
    sizes = _positions_by_example(teacher_example_K, example_K)
    shorter_E = torch.minimum(*sizes)
    rank = torch.arange(int(shorter_E.sum()), device=example_K.device)
    rank = rank - (shorter_E.cumsum(0) - shorter_E).repeat_interleave(shorter_E)
    teacher, student = ((size.cumsum(0) - size).repeat_interleave(shorter_E) + rank for size in sizes)
    return teacher, student


def shared_examples(teacher_example_K: Tensor, example_K: Tensor) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """What to keep of both, namely the examples that both have, and the positions of each of those on both sides."""
    sizes = _positions_by_example(teacher_example_K, example_K)
    shared_E = (sizes[0] > 0) & (sizes[1] > 0)
    teacher_sizes, student_sizes = (size[shared_E].tolist() for size in sizes)
    return shared_E[teacher_example_K], shared_E[example_K], teacher_sizes, student_sizes


def _positions_by_example(teacher_example_K: Tensor, example_K: Tensor) -> tuple[Tensor, Tensor]:
    """([E], [E]) how many positions each example has on either side."""
    examples = 1 + int(torch.cat([teacher_example_K, example_K, example_K.new_zeros(1)]).max())
    teacher_E, student_E = (torch.bincount(ids, minlength=examples) for ids in (teacher_example_K, example_K))
    return teacher_E, student_E


def divided(total: Tensor, count: int | Tensor | None, own: int) -> Tensor:
    """A sum over the compared by their count, or by that of the global batch where one is given."""
    return total / (max(1, own) if count is None else count)
