"""Several next-token distributions as one. Shapes: N positions, L tokens that all members speak of."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from alm_pipeline.ensemble.config import Mean


def combine(parts: Iterable[tuple[Tensor, float]], mean: Mean) -> Tensor:
    """[N, L] log-probabilities out of (log-probabilities, weight) of each member; the weights sum to 1.

    `probabilities`: log Σ w p. `logprobs`: Σ w log p, renormalized. One member's distribution is held at a time, so
    `parts` may be a generator.
    """
    total: Tensor | None = None
    for logprobs_NL, weight in parts:
        if mean == "probabilities":
            weighted_NL = logprobs_NL + math.log(weight)
            total = weighted_NL if total is None else torch.logaddexp(total, weighted_NL)
        else:
            weighted_NL = logprobs_NL * weight
            total = weighted_NL if total is None else total + weighted_NL
    assert total is not None, "an ensemble without members"
    return total if mean == "probabilities" else total.log_softmax(-1)
