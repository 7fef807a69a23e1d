"""The latents term: it moves the student's hidden states at the ends of chunks toward the teacher's.

Shapes: A aligned chunks (not merged), H the student's hidden width, J the teacher's.
"""

from torch import Tensor

_EPSILON = 1e-8


def latents_loss(teacher_hidden_AJ: Tensor, student_hidden_AJ: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Return the normalized squared distance of the hidden states, summed over chunks and divided by `count` (None: A).

    Each channel's squared distance is divided by the teacher's mean square in that channel, taken over the A chunks of
    the micro-batch. A chunk's distance is the mean over channels, so a student whose hidden states are all 0 has a
    distance of about 1 (arXiv 2503.20083, section on hidden states). A student of another width must be projected to
    the teacher's width first. The loss of a micro-batch without chunks is 0.
    """
    if not len(teacher_hidden_AJ):
        return student_hidden_AJ.sum()
    teacher_AJ = teacher_hidden_AJ.float().detach()
    scale_J = teacher_AJ.square().mean(0) + _EPSILON
    distance_A = ((student_hidden_AJ.float() - teacher_AJ).square() / scale_J).mean(-1)
    return distance_A.sum() / (len(distance_A) if count is None else count)
