"""The rules by which two models become one, tensor by tensor: θ₀ of the base, θ₁ of its tuned child, δ = θ₁ − θ₀.

| rule | θ(λ) | source |
|---|---|---|
| linear | θ₀ + λ δ | task arithmetic of one task, 2212.04089 |
| slerp | on the arc from θ₀ to θ₁, both flattened; linear where they are nearly parallel | Shoemake 1985 |
| ties | θ₀ + λ δ of the ρ n largest changes; with one child no signs are to be elected | 2306.01708 |
| dare | θ₀ + λ m δ / ρ with a mask m, 1 with probability ρ | 2311.03099 |

All of them give θ₀ at λ = 0, and all give θ₁ at λ = 1 and ρ = 1, to the last bit.
"""

import hashlib
import math
from typing import assert_never

import torch
from torch import Tensor

from alm_pipeline.merging.rule import SPARSE_METHODS, MergeRule

PARALLEL = 0.9995
"""The cosine above which an arc is taken for a straight line: there, the sine that slerp divides by loses precision."""
_SEED_BYTES = 6


def merge_tensors(base: Tensor, tuned: Tensor, rule: MergeRule, name: str) -> Tensor:
    """Return the merged tensor in float32. Both have one shape; `name` and the seed decide the mask of `dare`."""
    base, tuned = base.float(), tuned.float()
    # not by the formula, whose rounding would change bits, and turn −0 to 0
    if rule.weight == 0:
        return base
    if rule.weight == 1 and (rule.method not in SPARSE_METHODS or rule.density == 1):
        return tuned
    match rule.method:
        case "linear":
            return base + rule.weight * (tuned - base)
        case "slerp":
            return _on_the_arc(base, tuned, rule.weight)
        case "ties":
            return base + rule.weight * _largest(tuned - base, rule.density)
        case "dare":
            return base + rule.weight * _kept_at_random(tuned - base, rule.density, f"{rule.seed}/{name}")
        case _:
            assert_never(rule.method)


def _on_the_arc(base: Tensor, tuned: Tensor, weight: float) -> Tensor:
    """Return sin((1 − λ) Ω) / sin Ω · θ₀ + sin(λ Ω) / sin Ω · θ₁, with the angle Ω between the flattened tensors."""
    flat = base.double().flatten(), tuned.double().flatten()
    norms = float(flat[0].norm() * flat[1].norm())
    cosine = float(flat[0] @ flat[1]) / norms if norms else 1.0
    if abs(cosine) > PARALLEL:
        return base + weight * (tuned - base)
    angle = math.acos(cosine)
    of_base, of_tuned = (math.sin(share * angle) / math.sin(angle) for share in (1 - weight, weight))
    return of_base * base + of_tuned * tuned


def _largest(change: Tensor, density: float) -> Tensor:
    """Return the change with all but its ⌈ρ n⌉ values of the largest magnitude set to 0."""
    count = math.ceil(round(density * change.numel(), 6))  # 0.1 · 30 is above 3 in floating point
    kept = torch.zeros_like(change).flatten()
    largest = change.abs().flatten().topk(count, sorted=False).indices
    kept[largest] = change.flatten()[largest]
    return kept.view_as(change)


def _kept_at_random(change: Tensor, density: float, key: str) -> Tensor:
    """Return the change with each value kept with probability ρ, and divided by ρ, so that its mean is the change."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:_SEED_BYTES], "big")
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(change.shape, generator=generator) < density
    return torch.where(mask, change / density, 0.0)
