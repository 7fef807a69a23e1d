"""Universal Logit Distillation, checked against a loop in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.baselines.uld import uld_loss
from tests.alm_pipeline.objective.baselines.cases import (
    EXAMPLES,
    Example,
    Maker,
    Side,
    check_close,
    example_positions,
    logits,
    packed,
    unpacked,
)


def uld(teacher: Side, student: Side, count: int | None = None) -> Tensor:
    return uld_loss(
        teacher.hidden, student.hidden, teacher.head, student.head, teacher.predicted, student.predicted,
        teacher.example, student.example, count=count,
    )  # fmt: skip


def loop_uld(teacher: Side, student: Side) -> tuple[Tensor, int]:
    """The oracle: example by example, position by position, probability by probability."""
    total, compared = torch.zeros((), dtype=torch.float64), 0
    for example in range(len(EXAMPLES)):
        pairs = zip(example_positions(teacher, example), example_positions(student, example), strict=False)
        for theirs, ours in pairs:
            p = sorted(logits(teacher, theirs).detach().softmax(0), reverse=True)
            q = sorted(logits(student, ours).softmax(0), reverse=True)
            zero = torch.zeros((), dtype=torch.float64)
            longest = max(len(p), len(q))
            p, q = p + [zero] * (longest - len(p)), q + [zero] * (longest - len(q))
            total = total + sum((x - y).abs() for x, y in zip(p, q, strict=True))
            compared += 1
    return total, compared


@pytest.mark.usefixtures("piece_elements")
@pytest.mark.parametrize("vocabularies", [(9, 7), (6, 11), (8, 8)])
@pytest.mark.parametrize("layout", [packed, unpacked])
def test_values_and_gradients_are_the_loops(vocabularies, layout) -> None:
    teacher, student = layout(Maker(EXAMPLES, vocabularies))
    expected, compared = loop_uld(teacher, student)
    assert compared == 3 + 0 + 1 + 0 + 1
    leaves = [*teacher.leaves(), *student.leaves()]
    check_close(expected / compared, uld(teacher, student), leaves)
    check_close(expected / 100, uld(teacher, student, count=100), leaves)


def test_packed_is_unpacked() -> None:
    maker = Maker(EXAMPLES)
    torch.testing.assert_close(uld(*packed(maker)), uld(*unpacked(maker)))


@given(seed=st.integers(0, 1000))
def test_zero_for_the_same_probabilities_whatever_their_labels(seed: int) -> None:
    maker = Maker([Example(4, 4), Example(2, 2)], (8, 8), seed)
    teacher, student = maker.side(0, [[0, 1]], 0), maker.side(1, [[0, 1]], 0)
    order = torch.randperm(8, generator=maker.generator)
    student.hidden = teacher.hidden.detach().clone().requires_grad_()
    head = teacher.head
    assert head.bias_V is not None
    student.head = Head(head.weight_VH.detach()[order].requires_grad_(), head.bias_V.detach()[order], 0.7, 5.0)
    assert uld(teacher, student).abs() < 1e-12


@given(seed=st.integers(0, 1000))
def test_the_order_of_the_vocabulary_changes_nothing(seed: int) -> None:
    maker = Maker(EXAMPLES, seed=seed)
    teacher, student = packed(maker)
    expected = uld(teacher, student)
    for side in (teacher, student):
        assert side.head.bias_V is not None
        order = torch.randperm(len(side.head.bias_V), generator=maker.generator)
        side.head = Head(side.head.weight_VH[order], side.head.bias_V[order], 0.7, 5.0)
    torch.testing.assert_close(uld(teacher, student), expected)


def test_nothing_to_compare_is_zero_and_differentiable() -> None:
    maker = Maker([Example(1, 1)])
    teacher, student = maker.side(0, [[0]], 0), maker.side(1, [[0]], 1)
    loss = uld(teacher, student)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, student.hidden)
    assert not gradient.any()
