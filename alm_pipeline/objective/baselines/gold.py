"""GOLD (Patiño et al. 2025, "Unlocking On-Policy Distillation for Any Model Family"), from aligned spans of text.

The formulas are those of its authors' implementation (trl.experimental.gold, ULDLoss), with its options: spans by byte
offsets, distributions merged by the chain rule (`uld_token_merge_strategy: bayesian`), the hybrid loss with weights by
the overlap of the vocabularies, β 0.5. What differs: tokens match by bytes and not by their spelling in the vocabulary,
and a step's spans are averaged as one, not example by example.

Shapes: A chunks; V and W the student's and the teacher's vocabularies; L tokens that both have.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.baselines.chunk_places import one_to_one
from alm_pipeline.objective.baselines.pieces import sum_in_pieces, with_weights
from alm_pipeline.objective.baselines.positions import divided

_LEAST_PROBABILITY = 1e-8


def gold_loss(
    teacher_hidden_AJ: Tensor,
    hidden_AH: Tensor,
    teacher_before_A: Tensor,
    before_A: Tensor,
    head_teacher: Head,
    head_student: Head,
    mapping_V: Tensor,
    *,
    beta: float = 0.5,
    count: int | Tensor | None = None,
) -> Tensor:
    """Scalar: Σ over chunks of w · JSD over matched tokens + (1 − w) · L1 of the sorted others, over `count`.

    Hidden states are those that predict the last token of each chunk, and `before` the log-probabilities of its tokens
    before that one. A side's merged distribution is its last one times what came before, and is not normalized. w is
    the share of the teacher's vocabulary that the student has too (`mapping_V`: of `same_bytes_mapping`). `count` is
    that of the global batch (None: the chunks).
    """
    total = sum_in_pieces(
        partial(_differences, head_teacher, head_student, mapping_V, beta),
        [teacher_hidden_AJ.detach(), hidden_AH, teacher_before_A.detach(), before_A],
        [head_student.weight_VH, head_student.bias_V],
        max(len(head_teacher.weight_VH), len(head_student.weight_VH)),
    )
    return divided(total, count, len(before_A))


def _differences(
    head_teacher: Head,
    head_student: Head,
    mapping_V: Tensor,
    beta: float,
    teacher_hidden_AJ: Tensor,
    hidden_AH: Tensor,
    teacher_before_A: Tensor,
    before_A: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
) -> Tensor:
    student_AV = with_weights(head_student, weight_VH, bias_V).logits(hidden_AH).softmax(-1) * before_A.exp()[:, None]
    teacher_AW = head_teacher.logits(teacher_hidden_AJ).softmax(-1) * teacher_before_A.exp()[:, None]
    ids_L, teacher_ids_L = one_to_one(mapping_V, teacher_AW.shape[-1], student_AV.shape[-1])
    share = len(ids_L) / teacher_AW.shape[-1]
    matched = _jensen_shannon(teacher_AW[:, teacher_ids_L], student_AV[:, ids_L], beta)
    others = _sorted_distance(_without(teacher_AW, teacher_ids_L), _without(student_AV, ids_L))
    return share * matched + (1 - share) * others


def _jensen_shannon(teacher_AL: Tensor, student_AL: Tensor, beta: float) -> Tensor:
    """β KL(p_T ‖ m) + (1 − β) KL(p_S ‖ m) with m = β p_T + (1 − β) p_S, of unnormalized distributions."""
    teacher, student = (values.clamp_min(_LEAST_PROBABILITY) for values in (teacher_AL, student_AL))
    mixed = (beta * teacher + (1 - beta) * student).log()
    divergences = beta * teacher * (teacher.log() - mixed) + (1 - beta) * student * (student.log() - mixed)
    return divergences.sum()


def _without(values_AV: Tensor, ids_L: Tensor) -> Tensor:
    kept = torch.ones(values_AV.shape[-1], dtype=torch.bool, device=values_AV.device)
    kept[ids_L] = False
    return values_AV[:, kept]


def _sorted_distance(teacher_AW: Tensor, student_AV: Tensor) -> Tensor:
    """Σ |sort(p_T) − sort(p_S)|; 0 if one of the sides has no such token."""
    if not (teacher_AW.shape[-1] and student_AV.shape[-1]):
        return student_AV.sum() * 0
    teacher, student = (values.sort(-1, descending=True).values for values in (teacher_AW, student_AV))
    missing = teacher.shape[-1] - student.shape[-1]
    return (F.pad(teacher, (0, max(0, -missing))) - F.pad(student, (0, max(0, missing)))).abs().sum()
