"""MinED (Wan et al. 2024, "Knowledge Fusion of LLMs", arXiv 2401.10491): the teacher's next-token distribution, mapped
to the student's vocabulary by the minimum edit distance between tokens (`mined_mapping`).

Shapes: N student positions of a batch, M teacher positions, H and J their hidden widths, V and W their vocabularies,
K compared chunks, L student tokens that have a teacher token.
"""

from functools import partial

import torch
from torch import Tensor

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.baselines.pieces import sum_in_pieces, with_weights
from alm_pipeline.objective.baselines.positions import divided


def mined_loss(
    teacher_hidden_MJ: Tensor,
    hidden_NH: Tensor,
    head_teacher: Head,
    head_student: Head,
    last_teacher_token_K: Tensor,
    last_token_K: Tensor,
    mapping_V: Tensor,
    *,
    temperature: float = 1.0,
    count: int | Tensor | None = None,
) -> Tensor:
    """Scalar: Σ of KL(mapped p_T ‖ p_S) after the last token of chunks, divided by `count` (None: the chunks compared).

    After a chunk's last token both sides have read the same bytes. FuseLLM and the baselines of DSKD (arXiv 2406.17328)
    and of ALM (arXiv 2503.20083) compare chunks of one teacher token and one student token. At the student's other
    tokens those works replace the teacher by the observed token. That is cross-entropy, which the SFT term computes.

    In the mapped distribution, student token v has the teacher's logit of `mapping_V[v]`. If that is −1
    or beyond the rows of the teacher's head, v has no probability. A softmax normalizes the rest. The temperature
    applies to both sides.
    """
    columns_L, teacher_columns_L = _columns(mapping_V, len(head_teacher.weight_VH), len(head_student.weight_VH))
    total = sum_in_pieces(
        partial(_divergence, head_teacher, head_student, teacher_columns_L, columns_L, temperature),
        [teacher_hidden_MJ.detach()[last_teacher_token_K], hidden_NH[last_token_K]],
        [head_student.weight_VH, head_student.bias_V],
        max(len(head_teacher.weight_VH), len(head_student.weight_VH)),
    )
    return divided(total, count, len(last_token_K))


def _columns(mapping_V: Tensor, teacher_rows: int, student_rows: int) -> tuple[Tensor, Tensor]:
    """Return the student tokens [L] that have a teacher token, and these teacher tokens [L].

    Ids beyond the rows of a head are left out: a tokenizer may have more ids than its model's head has rows.
    """
    mapping_V = mapping_V[:student_rows]
    columns_L = torch.nonzero((mapping_V >= 0) & (mapping_V < teacher_rows)).squeeze(-1)
    return columns_L, mapping_V[columns_L]


def _divergence(
    head_teacher: Head,
    head_student: Head,
    teacher_columns_L: Tensor,
    columns_L: Tensor,
    temperature: float,
    teacher_hidden_KJ: Tensor,
    hidden_KH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
) -> Tensor:
    teacher_KL = (head_teacher.logits(teacher_hidden_KJ).detach()[:, teacher_columns_L] / temperature).log_softmax(-1)
    student_KV = with_weights(head_student, weight_VH, bias_V).logits(hidden_KH) / temperature
    student_KL = student_KV.log_softmax(-1)[:, columns_L]
    return (teacher_KL.exp() * (teacher_KL - student_KL)).sum()
