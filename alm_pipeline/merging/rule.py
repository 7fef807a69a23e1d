"""How two models are merged."""

from typing import Literal, NamedTuple

MergeMethod = Literal["linear", "slerp", "ties", "dare"]
SPARSE_METHODS: tuple[MergeMethod, ...] = ("ties", "dare")
"""the methods that have a density"""
Parent = Literal["tuned", "base"]


class MergeRule(NamedTuple):
    """How a base model and its tuned child are merged."""

    method: MergeMethod = "linear"
    weight: float = 0.5
    """λ: 0 is the base, 1 the child; beyond both, the line goes on"""
    density: float = 1.0
    """ρ in (0, 1]: the share of the changes that `ties` and `dare` keep"""
    seed: int = 0
    """of the masks of `dare`"""

    def __str__(self) -> str:
        density = f", density {self.density:g}" if self.method in SPARSE_METHODS else ""
        seed = f", seed {self.seed}" if self.method == "dare" else ""
        return f"{self.method}, weight {self.weight:g}{density}{seed}"
