"""Combines several next-token distributions into one. Shapes: N positions, L tokens that all members have."""

import math
from collections.abc import Iterable
from functools import reduce
from typing import assert_never

import torch
from torch import Tensor

from alm_pipeline.ensemble.config import Mean


def combine(parts: Iterable[tuple[Tensor, float]], mean: Mean) -> Tensor:
    """Return log-probabilities [N, L] from the (log-probabilities, weight) of each member; the weights sum to 1.

    `probabilities`: log Σ w p. `logprobs`: Σ w log p, renormalized. Only one member's distribution is in use at a
    time, so `parts` may be a generator.
    """
    match mean:
        case "probabilities":
            return reduce(torch.logaddexp, (logprobs_NL + math.log(weight) for logprobs_NL, weight in parts))
        case "logprobs":
            return reduce(torch.add, (logprobs_NL * weight for logprobs_NL, weight in parts)).log_softmax(-1)
        case _:
            assert_never(mean)
