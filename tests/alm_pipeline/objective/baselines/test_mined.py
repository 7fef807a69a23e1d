"""MinED's divergence, checked against a loop in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alm_pipeline.objective.baselines.mined import mined_loss
from tests.alm_pipeline.objective.baselines.cases import (
    EXAMPLES,
    Example,
    Maker,
    Side,
    check_close,
    logits,
    packed,
    unpacked,
)

MAPPING = [3, -1, 0, 3, 8, -1, 5]
# a tokenizer with more ids than the heads have rows, on both sides
LONG_MAPPING = [3, -1, 0, 3, 9, -1, 5, 2, 1]


def mined(teacher: Side, student: Side, mapping: list[int], one_to_one: bool = True, **settings: float) -> Tensor:
    sizes = zip(*(torch.bincount(side.chunk[side.chunk >= 0]) for side in (teacher, student)), strict=True)
    kept = torch.tensor([not one_to_one or size == (1, 1) for size in sizes], dtype=torch.bool)
    return mined_loss(
        teacher.hidden, student.hidden, teacher.head, student.head, teacher.last[kept], student.last[kept],
        torch.tensor(mapping), **settings,
    )  # fmt: skip


def loop_mined(teacher: Side, student: Side, mapping: list[int], temperature: float, one_to_one: bool) -> Tensor:
    """The oracle: the mean over chunks, student token by student token."""
    terms = []
    sizes = [chunk for example in EXAMPLES for chunk in example.chunks]
    for theirs, ours, size in zip(teacher.last, student.last, sizes, strict=True):
        if one_to_one and size != (1, 1):
            continue
        raw = logits(teacher, int(theirs)).detach() / temperature
        log_q = (logits(student, int(ours)) / temperature).log_softmax(0)
        weights = [raw[to].exp() if 0 <= to < len(raw) else torch.zeros(()) for to in mapping[: len(log_q)]]
        p = [weight / sum(weights) for weight in weights]
        terms.append(sum(p_v * (p_v.log() - log_q[v]) for v, p_v in enumerate(p) if p_v > 0))
    return torch.stack(terms).mean()


@pytest.mark.usefixtures("piece_elements")
@pytest.mark.parametrize("one_to_one", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("mapping", [MAPPING, LONG_MAPPING])
def test_values_and_gradients_are_the_loops(mapping: list[int], temperature: float, one_to_one: bool) -> None:
    teacher, student = packed(Maker(EXAMPLES))
    expected = loop_mined(teacher, student, mapping, temperature, one_to_one)
    got = mined(teacher, student, mapping, temperature=temperature, one_to_one=one_to_one)
    check_close(expected, got, [*teacher.leaves(), *student.leaves()])
    compared = 6 if one_to_one else 9
    by_count = mined(teacher, student, mapping, temperature=temperature, one_to_one=one_to_one, count=2 * compared)
    torch.testing.assert_close(2 * by_count, got)


def test_packed_is_unpacked() -> None:
    maker = Maker(EXAMPLES)
    torch.testing.assert_close(mined(*packed(maker), MAPPING), mined(*unpacked(maker), MAPPING))


@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_never_negative_and_zero_at_equality(seed: int, temperature: float) -> None:
    maker = Maker([Example(3, 3, [(1, 1), (1, 1)])], (7, 7), seed)
    teacher, student = maker.side(0, [[0]], 0), maker.side(1, [[0]], 0)
    mapping = torch.randperm(7, generator=maker.generator).tolist()
    assert mined(teacher, student, mapping, temperature=temperature) > 0
    assert mined(teacher, student, [-1] * 7, temperature=temperature) == 0
    student.hidden = teacher.hidden.detach().clone().requires_grad_()
    student.head = teacher.head
    loss = mined(teacher, student, list(range(7)), temperature=temperature)
    assert loss.abs() < 1e-12
    (gradient,) = torch.autograd.grad(loss, student.hidden)
    assert gradient.abs().max() < 1e-12


def test_no_chunk_is_zero_and_differentiable() -> None:
    maker = Maker([Example(3, 3)])
    teacher, student = maker.side(0, [[0]], 0), maker.side(1, [[0]], 0)
    loss = mined(teacher, student, MAPPING)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, student.hidden)
    assert not gradient.any()
