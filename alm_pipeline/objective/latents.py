"""The latents term: the student's hidden states at the ends of chunks are to be the teacher's.

Shapes: A aligned chunks (not merged), H the student's hidden width, J the teacher's.
"""

from torch import Tensor

_EPSILON = 1e-8


def latents_loss(teacher_hidden_AJ: Tensor, student_hidden_AJ: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Squared distance, each channel divided by the teacher's mean square in it, summed over chunks by `count`.

    The mean over channels, so that 1 is what a student of zeros has (arXiv 2503.20083, section on hidden states). A
    student of another width is projected first. The mean square is over the A chunks given, so it is of the
    micro-batch. Zero where there is no chunk.
    """
    if not len(teacher_hidden_AJ):
        return student_hidden_AJ.sum()
    teacher_AJ = teacher_hidden_AJ.float().detach()
    scale_J = teacher_AJ.square().mean(0) + _EPSILON
    distance_A = ((student_hidden_AJ.float() - teacher_AJ).square() / scale_J).mean(-1)
    return distance_A.sum() / (len(distance_A) if count is None else count)
