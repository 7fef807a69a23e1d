"""Universal Logit Distillation (Boizard et al. 2024, arXiv 2402.12030) compares distributions without their labels.

Shapes: N student positions of a batch, M teacher positions, H and J their hidden widths, V and W their vocabularies,
K compared pairs of positions.
"""

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.baselines.pieces import sum_in_pieces, with_weights
from alm_pipeline.objective.baselines.positions import divided, pair_by_rank, predicting_positions


def uld_loss(
    teacher_hidden_MJ: Tensor,
    hidden_NH: Tensor,
    head_teacher: Head,
    head_student: Head,
    teacher_predicted_M: Tensor,
    predicted_N: Tensor,
    example_of_teacher_token_M: Tensor,
    example_of_token_N: Tensor,
    *,
    count: int | Tensor | None = None,
) -> Tensor:
    """Scalar: Σ over pairs of positions of Σ_v |sort(p_T)_v − sort(p_S)_v|, divided by `count` (None: the pairs).

    This is the paper's closed form of the Wasserstein-1 distance with equal costs for every transport. The shorter
    distribution is padded with zeros. The k-th predicted token of an example is compared with its k-th on the other
    side, whatever text the two cover; the surplus of the longer side is left out. The paper adds this loss, with a
    weight, to the cross-entropy of the student's tokens.
    """
    teacher_K, teacher_example_K = predicting_positions(teacher_predicted_M, example_of_teacher_token_M)
    student_K, example_K = predicting_positions(predicted_N, example_of_token_N)
    teacher_pairs_K, pairs_K = pair_by_rank(teacher_example_K, example_K)
    total = sum_in_pieces(
        partial(_distance, head_teacher, head_student),
        [teacher_hidden_MJ.detach()[teacher_K[teacher_pairs_K]], hidden_NH[student_K[pairs_K]]],
        [head_student.weight_VH, head_student.bias_V],
        max(len(head_teacher.weight_VH), len(head_student.weight_VH)),
    )
    return divided(total, count, len(pairs_K))


def _distance(
    head_teacher: Head,
    head_student: Head,
    teacher_hidden_KJ: Tensor,
    hidden_KH: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    teacher_KW = head_teacher.logits(teacher_hidden_KJ).detach().softmax(-1)
    student_KV = with_weights(head_student, weight, bias).logits(hidden_KH).softmax(-1)
    teacher_KW, student_KV = (probs.sort(-1, descending=True).values for probs in (teacher_KW, student_KV))
    missing = teacher_KW.shape[-1] - student_KV.shape[-1]
    teacher_KW, student_KV = F.pad(teacher_KW, (0, max(0, -missing))), F.pad(student_KV, (0, max(0, missing)))
    return (teacher_KW - student_KV).abs().sum()
