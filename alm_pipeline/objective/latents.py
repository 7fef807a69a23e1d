"""The latents term: it moves the student's hidden states at the ends of chunks toward the teacher's.

Shapes: A aligned chunks (not merged), H the student's hidden width, J the teacher's.
"""

from torch import Tensor

_EPSILON = 1e-8


def latents_loss(teacher_hidden_AJ: Tensor, student_hidden_AJ: Tensor, count: Tensor | float | None = None) -> Tensor:
    """The squared distance, with each channel divided by the teacher's mean square in it, per chunk.

    It is the mean over channels, so that hidden states of zeros have a distance of 1 (arXiv 2503.20083, section on
    hidden states); the sum over chunks is divided by `count` (None: these A). A student of another width is projected
    first. The mean square is over these A chunks, so over the micro-batch. Zero if there is no chunk.
    """
    if not len(teacher_hidden_AJ):
        return student_hidden_AJ.sum()
    teacher_AJ = teacher_hidden_AJ.float().detach()
    scale_J = teacher_AJ.square().mean(0) + _EPSILON
    distance_A = ((student_hidden_AJ.float() - teacher_AJ).square() / scale_J).mean(-1)
    return distance_A.sum() / (len(distance_A) if count is None else count)
