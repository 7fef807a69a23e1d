"""The rules by which tensors are merged: exact at their ends, and held to their formulas."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alm_pipeline.merging.rule import SPARSE_METHODS, MergeMethod, MergeRule
from alm_pipeline.merging.tensors import PARALLEL, merge_tensors

SHAPE = (17, 23)


def pair(seed: int = 0, change: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(SHAPE, generator=generator)
    base[0, :3] = torch.tensor([0.0, -0.0, 1e-40])
    return base, base + change * torch.randn(SHAPE, generator=generator)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@pytest.mark.parametrize("method", get_args(MergeMethod))
def test_the_ends_are_the_parents_to_the_bit(method: str) -> None:
    base, tuned = pair()
    for density in (1.0, 0.3) if method in SPARSE_METHODS else (1.0,):
        assert bits(merge_tensors(base, tuned, MergeRule(method, 0.0, density), "name")) == bits(base)
    assert bits(merge_tensors(base, tuned, MergeRule(method, 1.0), "name")) == bits(tuned)


@given(st.floats(-0.5, 1.5), st.integers(0, 100))
def test_linear_is_its_formula(weight: float, seed: int) -> None:
    base, tuned = pair(seed)
    exact = base.double() + weight * (tuned.double() - base.double())
    # of the difference, of the product and of the sum
    error = (merge_tensors(base, tuned, MergeRule("linear", weight), "name").double() - exact).abs()
    assert (error <= 2**-22 * (base.abs() + tuned.abs()).double() * (1 + abs(weight))).all()


@given(st.floats(0.01, 0.99), st.integers(0, 100))
def test_slerp_is_on_the_arc(weight: float, seed: int) -> None:
    """Of two unit vectors it is the unit vector that divides the angle by λ."""
    base, tuned = (tensor / tensor.norm() for tensor in pair(seed))
    made = merge_tensors(base, tuned, MergeRule("slerp", weight), "name")
    angle = math.acos(float((base * tuned).sum()))
    assert float(made.norm()) == pytest.approx(1, abs=1e-5)
    assert math.acos(min(1, float((base * made).sum()))) == pytest.approx(weight * angle, abs=2e-3)


@pytest.mark.parametrize("parents", ["nearly parallel", "opposite", "zero"])
def test_slerp_is_linear_where_there_is_no_arc(parents: str) -> None:
    base, tuned = pair(change=1e-3)
    tuned = {"nearly parallel": tuned, "opposite": -base, "zero": torch.zeros(SHAPE)}[parents]
    cosine = torch.nn.functional.cosine_similarity(base.flatten(), tuned.flatten(), dim=0)
    assert abs(float(cosine)) > PARALLEL or not tuned.any()
    made, linear = (merge_tensors(base, tuned, MergeRule(method, 0.3), "name") for method in ("slerp", "linear"))
    assert bits(made) == bits(linear)


@given(st.floats(0.01, 1), st.integers(0, 100), st.booleans())
def test_ties_keeps_the_largest_changes(density: float, seed: int, rounded: bool) -> None:
    base, tuned = pair(seed)
    if rounded:  # many changes of the same size
        tuned = base + (tuned - base).round()
    made = merge_tensors(base, tuned, MergeRule("ties", 0.7, density), "name")
    change, kept = (tuned - base).abs(), made != base
    # a change of 0 may be among those that are kept
    count = math.ceil(round(density * change.numel(), 6))
    assert int(kept.sum()) == min(count, int((change > 0).sum()))
    if kept.any() and not kept.all():
        assert change[kept].min() >= change[~kept].max()
    np.testing.assert_allclose(made[kept], (base + 0.7 * (tuned - base))[kept])


@pytest.mark.parametrize(("density", "size", "count"), [(0.1, 30, 3), (0.7, 10, 7), (0.29, 100, 29), (0.01, 5, 1)])
def test_the_number_of_kept_changes_is_not_a_matter_of_rounding(density: float, size: int, count: int) -> None:
    made = merge_tensors(torch.zeros(size), torch.ones(size), MergeRule("ties", 0.5, density), "name")
    assert int((made != 0).sum()) == count


def test_dare_depends_on_seed_and_name_alone() -> None:
    base, tuned = pair()

    def made(seed: int, name: str) -> bytes:
        return bits(merge_tensors(base, tuned, MergeRule("dare", 0.5, 0.5, seed), name))

    assert made(0, "a") == made(0, "a")
    assert len({made(0, "a"), made(1, "a"), made(0, "b")}) == 3


def test_dare_is_linear_on_average() -> None:
    base, tuned = pair()
    made = [merge_tensors(base, tuned, MergeRule("dare", 0.4, 0.5, seed), "name").double() for seed in range(400)]
    mean, linear = torch.stack(made).mean(0), base + 0.4 * (tuned - base)
    # a kept change is doubled, so its standard deviation is the change itself
    spread = 0.4 * (tuned - base).abs() / math.sqrt(400)
    assert ((mean - linear).abs() <= 5 * spread + 1e-6).all()
    kept = sum(int((each != base).sum()) for each in made) / (400 * base.numel())
    assert kept == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_merged_in_float32(dtype: torch.dtype) -> None:
    base, tuned = (tensor.to(dtype) for tensor in pair())
    made = merge_tensors(base, tuned, MergeRule("linear", 0.3), "name")
    assert made.dtype == torch.float32
    assert bits(made) == bits(base.float() + 0.3 * (tuned.float() - base.float()))
