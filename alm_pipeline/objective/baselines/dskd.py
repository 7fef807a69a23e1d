"""Dual-space knowledge distillation with cross-model attention (Zhang et al. 2024, arXiv 2406.17328, section 3).

The formulas are the paper's. Details that it leaves open follow its authors' implementation (songmzhang/DSKD,
dual_space_kd_with_cross_model_attention.py): what is divided by a standard deviation, what is held fixed, which
positions count, and that nothing is multiplied by the square of the temperature. Every divergence is the forward
Kullback-Leibler divergence.

Shapes: N student positions of a batch, M teacher positions, H and J their hidden widths, V the student's vocabulary,
K student positions that predict a token, P teacher positions that predict a token, D = 2·J.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.baselines.pieces import frozen, sum_in_pieces, with_weights, without_autocast
from alm_pipeline.objective.baselines.positions import divided, predicting_positions, shared_examples


class DskdProjections(nn.Module):
    """The layers that DSKD trains beside the student. They are discarded after training."""

    def __init__(self, teacher_width: int, student_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(2 * student_width, 2 * teacher_width)
        """maps the student's input and target embeddings to the space of the teacher's"""
        self.student_to_teacher = nn.Linear(student_width, teacher_width)
        self.teacher_to_student = nn.Linear(teacher_width, student_width)


def dskd_loss(
    projections: DskdProjections,
    teacher_hidden_MJ: Tensor,
    hidden_NH: Tensor,
    teacher_embeddings_MJ: Tensor,
    embeddings_NH: Tensor,
    head_teacher: Head,
    head_student: Head,
    token_ids_N: Tensor,
    teacher_predicted_M: Tensor,
    predicted_N: Tensor,
    example_of_teacher_token_M: Tensor,
    example_of_token_N: Tensor,
    *,
    temperature: float = 2.0,
    count: int | Tensor | None = None,
) -> Tensor:
    """Scalar: the sum of the terms of both spaces, divided by `count` (None: the student positions compared).

    Attention between the positions of one example aligns the two sides. Each student position gets a mixture of the
    teacher's hidden states, projected to the student's width, and each teacher position a mixture of the student's in
    the teacher's width. The heads' predictions from these mixtures are compared with the models' own predictions.
    Embeddings are the outputs of the input layers for each token; no gradient goes into them. Examples that predict no
    token on one of the sides are left out.
    """
    examples = example_of_teacher_token_M, example_of_token_N
    positions_P, positions_K, *sizes = _compared(teacher_predicted_M, predicted_N, *examples)
    teacher_PJ, student_KH = teacher_hidden_MJ.detach()[positions_P], hidden_NH[positions_K]
    teacher = _AttentionSide(teacher_PJ, *_input_and_target(teacher_embeddings_MJ, positions_P))
    student = _AttentionSide(student_KH, *_input_and_target(embeddings_NH, positions_K))
    with without_autocast(student_KH):
        mixed_KH, mixed_PJ = _mixtures(projections, teacher, student, *sizes)
    total = _in_student_space(head_student, mixed_KH, student_KH, token_ids_N[positions_K + 1], temperature)
    total = total + _in_teacher_space(head_teacher, teacher_PJ, mixed_PJ, temperature)
    return divided(total, count, len(positions_K))


class _AttentionSide(NamedTuple):
    """The inputs of the attention from one side, example after example; n is K or P."""

    hidden_nH: Tensor
    inputs_nH: Tensor
    """embeddings of the tokens at the positions"""
    targets_nH: Tensor
    """embeddings of the tokens that follow"""


def _compared(
    teacher_predicted_M: Tensor, predicted_N: Tensor, example_of_teacher_token_M: Tensor, example_of_token_N: Tensor
) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Return the positions [P] and [K] that predict a token, and their number in each example on both sides.

    Examples that have none on one of the sides are left out.
    """
    positions_P, example_P = predicting_positions(teacher_predicted_M, example_of_teacher_token_M)
    positions_K, example_K = predicting_positions(predicted_N, example_of_token_N)
    shared_P, shared_K, teacher_sizes, sizes = shared_examples(example_P, example_K)
    return positions_P[shared_P], positions_K[shared_K], teacher_sizes, sizes


def _input_and_target(embeddings_NH: Tensor, positions_K: Tensor) -> tuple[Tensor, Tensor]:
    embeddings_NH = embeddings_NH.detach()
    return embeddings_NH[positions_K], embeddings_NH[positions_K + 1]


def _mixtures(
    projections: DskdProjections,
    teacher: _AttentionSide,
    student: _AttentionSide,
    teacher_sizes: list[int],
    sizes: list[int],
) -> tuple[Tensor, Tensor]:
    """([K, H], [P, J]) each position's mixture of the other side's hidden states, by attention within its example."""
    dtype = projections.query.weight.dtype
    teacher, student = (_AttentionSide(*(tensor.to(dtype) for tensor in side)) for side in (teacher, student))
    queries_KD = projections.query(torch.cat([student.inputs_nH, student.targets_nH], -1))
    keys_PD = _scaled(torch.cat([teacher.inputs_nH, teacher.targets_nH], -1))
    values_PH = projections.teacher_to_student(_scaled(teacher.hidden_nH) + _scaled(teacher.targets_nH))
    values_KJ = projections.student_to_teacher(student.hidden_nH)
    mixed_KH, mixed_PJ = [values_PH[:0]], [values_KJ[:0]]
    # one example at a time: all at once would need a matrix of K × P
    splits = [tensor.split(sizes) for tensor in (queries_KD, values_KJ)] + [
        tensor.split(teacher_sizes) for tensor in (keys_PD, values_PH)
    ]
    for queries, student_values, keys, teacher_values in zip(*splits, strict=True):
        affinity = queries @ keys.T / math.sqrt(keys.shape[-1])
        mixed_KH.append(affinity.softmax(-1) @ teacher_values)
        mixed_PJ.append(affinity.T.softmax(-1) @ student_values)
    return torch.cat(mixed_KH), torch.cat(mixed_PJ)


def _scaled(tensor: Tensor) -> Tensor:
    """Divide a tensor by the standard deviation of all its numbers."""
    return tensor / tensor.std() if len(tensor) else tensor


def _in_student_space(head: Head, mixed_KH: Tensor, hidden_KH: Tensor, targets_K: Tensor, temperature: float) -> Tensor:
    """Σ over student positions of −log q(next token) + [argmax q is the next token] · KL(q ‖ p_S).

    q is the prediction of the student's head from the mixture. The head is held fixed, and in the divergence q too.
    """

    def term(
        mixed_KH: Tensor, hidden_KH: Tensor, targets_K: Tensor, weight_VH: Tensor, bias_V: Tensor | None
    ) -> Tensor:
        mixed_KV = frozen(head).logits(mixed_KH)
        right_K = mixed_KV.argmax(-1) == targets_K
        student_KV = with_weights(head, weight_VH, bias_V).logits(hidden_KH[right_K])
        divergence = _forward_kl(mixed_KV.detach()[right_K], student_KV, temperature)
        return F.cross_entropy(mixed_KV, targets_K, reduction="sum") + divergence

    by_position = [mixed_KH.to(head.weight_VH.dtype), hidden_KH, targets_K]
    return sum_in_pieces(term, by_position, [head.weight_VH, head.bias_V], len(head.weight_VH))


def _in_teacher_space(head: Head, teacher_PJ: Tensor, mixed_PJ: Tensor, temperature: float) -> Tensor:
    """Σ over teacher positions of KL(p_T ‖ q), with the prediction q of the teacher's head from the mixture."""
    head = frozen(head)

    def term(teacher_PJ: Tensor, mixed_PJ: Tensor) -> Tensor:
        return _forward_kl(head.logits(teacher_PJ), head.logits(mixed_PJ), temperature)

    return sum_in_pieces(term, [teacher_PJ, mixed_PJ.to(head.weight_VH.dtype)], [], len(head.weight_VH))


def _forward_kl(fixed: Tensor, learning: Tensor, temperature: float) -> Tensor:
    """Σ KL(softmax(fixed/τ) ‖ softmax(learning/τ)) over the rows."""
    fixed, learning = ((logits / temperature).log_softmax(-1) for logits in (fixed, learning))
    return F.kl_div(learning, fixed, reduction="sum", log_target=True)
