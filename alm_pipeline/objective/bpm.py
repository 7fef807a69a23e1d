"""Byte-prefix marginalization (arXiv 2607.22334): the student's next-token distribution against `prefix_targets`.

Shapes: N positions of a batch, L student tokens of a target.
"""

import torch
from torch import Tensor


def bpm_loss(
    listed_logprobs_NL: Tensor,
    unlisted_logprobs_N: Tensor,
    probabilities_NL: Tensor,
    *,
    normalizer_N: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """Scalar: Σ of KL(target ‖ student) over the positions with a target, in nats, divided by `count`.

    `count` is the number of targets in the global batch (None: in this batch). A target is the probabilities of its
    tokens, and that of all others together, which is the rest of 1; a position whose probabilities are all 0 has none.
    The student's numbers are those of `scoring.head`, less `normalizer_N`: the log-probability of a boundary token, for
    targets that are conditional on one.
    """
    is_listed_NL = probabilities_NL > 0
    has_target_N = is_listed_NL.any(-1)
    if normalizer_N is not None:
        listed_logprobs_NL = listed_logprobs_NL - normalizer_N[:, None]
        unlisted_logprobs_N = unlisted_logprobs_N - normalizer_N
    rest_N = (1 - probabilities_NL.sum(-1)).clamp(min=0)
    # nothing is compared where the student has no other token, or the target no rest
    compares_rest_N = has_target_N & (rest_N > 0) & (unlisted_logprobs_N > -torch.inf)
    listed_NL = listed_logprobs_NL.where(is_listed_NL, 0)
    others_N = unlisted_logprobs_N.where(compares_rest_N, 0)
    entropy_N = torch.special.entr(probabilities_NL).sum(-1) + torch.special.entr(rest_N).where(compares_rest_N, 0)
    cross_N = -(probabilities_NL * listed_NL).sum(-1) - rest_N.where(compares_rest_N, 0) * others_N
    total = (cross_N - entropy_N).where(has_target_N, 0).sum()
    divisor = has_target_N.sum() if count is None else torch.as_tensor(count, device=total.device)
    mean: Tensor = total / divisor.clamp(min=1)
    return mean
