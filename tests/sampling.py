"""Large products of cases: a fixed third of them in every run, and all of them with ALM_SOAK."""

import os
from collections.abc import Iterable
from itertools import product
from typing import TypeVar

First = TypeVar("First")
Second = TypeVar("Second")


def sampled_pairs(first: Iterable[First], second: Iterable[Second]) -> list[tuple[First, Second]]:
    """Return every third pair, in which each value of both occurs unless 3 divides the number of second ones."""
    pairs = list(product(first, second))
    return pairs if "ALM_SOAK" in os.environ else pairs[::3]
