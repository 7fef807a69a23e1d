"""Every divergence, checked against its formula in float64, value and gradient."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.config import Divergence
from alm_pipeline.objective.divergences import DIVERGENCES, binary_kl, binary_kl_limit, log1mexp

EPSILON = 1e-6
logprob = st.floats(-200.0, -1e-4)
temperatures = st.sampled_from([1.0, 5.0, 100.0])


def log1m(x: float) -> float:
    return math.log(-math.expm1(x))


def oracle(name: str, teacher: float, student: float, temperature: float) -> float:
    """The table in the method's description, one line per divergence."""
    a, b = teacher / temperature - EPSILON, student / temperature - EPSILON
    r = (teacher - student) / temperature
    if name == "binary_ce":
        return -(math.exp(a) * b + (1 - math.exp(a)) * log1m(b))
    if name == "reverse_binary_kl":
        return math.exp(b) * (b - a) + (1 - math.exp(b)) * (log1m(b) - log1m(a))
    if name == "binary_kl_limit":
        t, s = teacher - EPSILON, student - EPSILON
        return (t - s) + t * math.log(-s) - t * math.log(-t)
    formulas = {
        "abs": lambda: abs(teacher - student),
        "abs_exp": lambda: abs(math.exp(a) - math.exp(b)),
        "k2": lambda: r**2 / 2,
        "k3": lambda: math.exp(r) - 1 - r,
    }
    return formulas[name]()


def test_every_divergence_is_in_the_table() -> None:
    assert set(DIVERGENCES) == set(get_args(Divergence))


@pytest.mark.parametrize("name", DIVERGENCES)
@given(teacher=logprob, student=logprob, temperature=temperatures)
def test_values(name: Divergence, teacher: float, student: float, temperature: float) -> None:
    if name == "k3" and (teacher - student) / temperature > 39:
        return  # its tangent, below
    sides = torch.tensor([[teacher], [student]], dtype=torch.float64)
    expected = oracle(name, teacher, student, temperature)
    assert DIVERGENCES[name](sides[0], sides[1], temperature).item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_gradients(name: Divergence, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = -10 * torch.rand(2, 8, generator=generator, dtype=torch.float64) - 0.01
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: DIVERGENCES[name](teacher, x, temperature), student)


EXTREMES = torch.tensor([0.0, -1e-8, -1e-3, -1.0, -50.0, -1e4])


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_likelihoods_of_zero_and_one_stay_finite_in_float32(name: Divergence, temperature: float) -> None:
    teacher = EXTREMES.repeat_interleave(len(EXTREMES))
    student = EXTREMES.repeat(len(EXTREMES)).requires_grad_()
    values = DIVERGENCES[name](teacher, student, temperature)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["reverse_binary_kl", "binary_kl_limit", "abs", "abs_exp", "k2", "k3"])
@given(value=logprob, temperature=temperatures)
def test_zero_at_equality(name: Divergence, value: float, temperature: float) -> None:
    side = torch.tensor([value], dtype=torch.float64)
    assert DIVERGENCES[name](side, side.clone(), temperature).abs().item() < 1e-12
    assert binary_kl(side, side.clone(), temperature).item() == 0


@given(teacher=logprob, student=logprob, temperature=temperatures)
def test_the_kl_is_binary_ce_without_the_teachers_entropy(teacher: float, student: float, temperature: float) -> None:
    sides = torch.tensor([[teacher], [student]], dtype=torch.float64)
    kl = binary_kl(sides[0], sides[1], temperature).item()
    entropy = oracle("binary_ce", teacher, teacher, temperature)
    assert kl == pytest.approx(oracle("binary_ce", teacher, student, temperature) - entropy, rel=1e-6, abs=1e-9)
    assert kl >= -1e-9


def test_binary_ce_is_flat_where_both_agree() -> None:
    teacher = torch.tensor([-0.01, -3.0, -150.0], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(DIVERGENCES["binary_ce"](teacher, student, 5.0).sum(), student)
    assert gradient.abs().max() < 1e-9


@given(teacher=st.floats(-20.0, -0.1), student=st.floats(-20.0, -0.1))
def test_the_limit_is_what_the_kl_times_temperature_tends_to(teacher: float, student: float) -> None:
    sides = torch.tensor([[teacher], [student]], dtype=torch.float64)
    limit = binary_kl_limit(sides[0], sides[1], math.nan).item()
    # a = C/τ − ε: the ε has to be small beside C/τ, too
    distances = [abs(t * binary_kl(sides[0], sides[1], t).item() - limit) for t in (10.0, 100.0, 1000.0)]
    assert distances[2] <= 0.02 * limit + 1e-3
    assert distances[2] <= distances[0] + 1e-3


def test_k3_continues_as_a_straight_line() -> None:
    student = torch.tensor([-39.0, -40.0, -50.0, -1e4], dtype=torch.float64, requires_grad=True)
    values = DIVERGENCES["k3"](torch.zeros(4, dtype=torch.float64), student, 1.0)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    steep = math.exp(40) - 1
    at_40 = math.exp(40) - 41
    assert values.tolist() == pytest.approx([math.exp(39) - 40, at_40, at_40 + 10 * steep, at_40 + 9960 * steep])
    assert gradient[1:].tolist() == pytest.approx([-steep] * 3)


@given(st.lists(st.floats(-700.0, -1e-12), min_size=1, max_size=20))
def test_log1mexp(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    result = log1mexp(x)
    for value, got in zip(values, result.tolist(), strict=True):
        expected = math.log(-math.expm1(value)) if value > -0.5 else math.log1p(-math.exp(value))
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-300)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.isfinite(gradient).all()
