"""SimCT: Simple Cross-Tokenizer distillation (Sun et al. 2026, arXiv 2605.07711).

The formulas are those of its authors' implementation (sunjie279/SimCT-, kdflow/algorithms/span_ctkd.py): each span is
one choice among the tokens that both vocabularies have, and the span itself. What differs: tokens match by bytes, and
spans are the finest ones, the aligned chunks, which the paper calls for; that code also joins each of several tokens
with the next token that both sides share.

Shapes: A chunks; V and W the student's and the teacher's vocabularies; L tokens that both have.
"""

from functools import partial

import torch
from torch import Tensor

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.baselines.chunk_places import SidePlaces, one_to_one
from alm_pipeline.objective.baselines.pieces import sum_in_pieces, with_weights
from alm_pipeline.objective.baselines.positions import divided

_IMPOSSIBLE = -1e9


def simct_loss(
    teacher_hidden_AJ: Tensor,
    hidden_AH: Tensor,
    teacher_span_A: Tensor,
    span_A: Tensor,
    is_span_A: Tensor,
    head_teacher: Head,
    head_student: Head,
    mapping_V: Tensor,
    *,
    count: int | Tensor | None = None,
) -> Tensor:
    """Scalar: Σ over chunks of KL(q_S ‖ q_T), divided by `count` (None: the chunks).

    Hidden states are those that predict the first token of each chunk. q is the softmax of the logits there of the
    tokens that both vocabularies have (`mapping_V`: of `same_bytes_mapping`), and, for a chunk of several tokens on a
    side (`is_span_A`), of the chunk's own logit (`span_logits`).
    """
    total = sum_in_pieces(
        partial(_divergence, head_teacher, head_student, mapping_V),
        [teacher_hidden_AJ.detach(), hidden_AH, teacher_span_A.detach(), span_A, is_span_A],
        [head_student.weight_VH, head_student.bias_V],
        max(len(head_teacher.weight_VH), len(head_student.weight_VH)),
    )
    return divided(total, count, len(span_A))


def span_logits(hidden_NH: Tensor, token_ids_N: Tensor, places: SidePlaces, head: Head) -> Tensor:
    """[A] the mean of the logits of a chunk's tokens, each at the position before it."""
    positions_T, chunk_T = places.tokens()
    logits_T = head.token_logits(hidden_NH[positions_T - 1], token_ids_N[positions_T])
    return places.sums(logits_T, chunk_T) / (places.last_A - places.first_A + 1)


def _divergence(
    head_teacher: Head,
    head_student: Head,
    mapping_V: Tensor,
    teacher_hidden_AJ: Tensor,
    hidden_AH: Tensor,
    teacher_span_A: Tensor,
    span_A: Tensor,
    is_span_A: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
) -> Tensor:
    student_AV = with_weights(head_student, weight_VH, bias_V).logits(hidden_AH)
    teacher_AW = head_teacher.logits(teacher_hidden_AJ)
    ids_L, teacher_ids_L = one_to_one(mapping_V, teacher_AW.shape[-1], student_AV.shape[-1])
    student = _choices(student_AV[:, ids_L], span_A, is_span_A)
    teacher = _choices(teacher_AW[:, teacher_ids_L], teacher_span_A, is_span_A)
    return (student.exp() * (student - teacher)).sum()


def _choices(shared_AL: Tensor, span_A: Tensor, is_span_A: Tensor) -> Tensor:
    """[A, L + 1] the log-probabilities of the shared tokens and of the span, which is impossible where it is none."""
    span_A = torch.where(is_span_A, span_A.to(shared_AL.dtype), _IMPOSSIBLE)
    return torch.cat([shared_AL, span_A[:, None]], -1).log_softmax(-1)
