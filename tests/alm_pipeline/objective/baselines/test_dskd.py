"""Dual-space distillation, checked against a loop in float64."""

import math

import pytest
import torch
from torch import Tensor

from alm_pipeline.objective.baselines.dskd import DskdProjections, dskd_loss
from tests.alm_pipeline.objective.baselines.cases import (
    EXAMPLES,
    TEACHER_WIDTH,
    WIDTH,
    Example,
    Maker,
    Side,
    check_close,
    example_positions,
    packed,
    unpacked,
)


@pytest.fixture
def projections() -> DskdProjections:
    torch.manual_seed(0)
    return DskdProjections(TEACHER_WIDTH, WIDTH).double()


def dskd(projections: DskdProjections, teacher: Side, student: Side, **settings: float) -> Tensor:
    return dskd_loss(
        projections, teacher.hidden, student.hidden, teacher.embeddings, student.embeddings, teacher.head, student.head,
        student.token_ids, teacher.predicted, student.predicted, teacher.example, student.example, **settings,
    )  # fmt: skip


def head_logits(side: Side, hidden: Tensor, *, fixed: bool) -> Tensor:
    weight, bias = side.head.weight_VH, side.head.bias_V
    assert bias is not None
    if fixed:
        weight, bias = weight.detach(), bias.detach()
    return 5.0 * torch.tanh(0.7 * (weight @ hidden + bias) / 5.0)


def kl(fixed: Tensor, learning: Tensor, temperature: float) -> Tensor:
    p, q = (fixed / temperature).softmax(0), (learning / temperature).softmax(0)
    return sum((p_v * (p_v / q_v).log() for p_v, q_v in zip(p, q, strict=True)), torch.zeros(()))


def loop_dskd(
    projections: DskdProjections, teacher: Side, student: Side, temperature: float
) -> tuple[Tensor, int, int]:
    """The oracle, position by position: the loss, the student positions, and how many the mixture predicts right."""
    positions = [
        (example_positions(teacher, example), example_positions(student, example)) for example in range(len(EXAMPLES))
    ]
    positions = [pair for pair in positions if pair[0] and pair[1]]
    every = [position for theirs, _ in positions for position in theirs]
    hidden, embeddings = teacher.hidden.detach(), teacher.embeddings.detach()
    hidden_std = torch.stack([hidden[i] for i in every]).std()
    target_std = torch.stack([embeddings[i + 1] for i in every]).std()
    index_std = torch.stack([embeddings[i + offset] for i in every for offset in (0, 1)]).std()
    own = student.embeddings.detach()
    total, right = torch.zeros((), dtype=torch.float64), 0
    for theirs, ours in positions:
        queries = [projections.query(torch.cat([own[i], own[i + 1]])) for i in ours]
        keys = [torch.cat([embeddings[j], embeddings[j + 1]]) / index_std for j in theirs]
        values = [
            projections.teacher_to_student(hidden[j] / hidden_std + embeddings[j + 1] / target_std) for j in theirs
        ]
        own_values = [projections.student_to_teacher(student.hidden[i]) for i in ours]
        scores = torch.stack([torch.stack([q @ k for k in keys]) for q in queries]) / math.sqrt(2 * TEACHER_WIDTH)
        for row, i in enumerate(ours):
            weights = scores[row].softmax(0)
            mixture = sum(weight * value for weight, value in zip(weights, values, strict=True))
            of_mixture = head_logits(student, mixture, fixed=True)
            target = int(student.token_ids[i + 1])
            total = total - of_mixture.log_softmax(0)[target]
            if int(of_mixture.argmax()) == target:
                right += 1
                total = total + kl(
                    of_mixture.detach(), head_logits(student, student.hidden[i], fixed=False), temperature
                )
        for column, j in enumerate(theirs):
            weights = scores[:, column].softmax(0)
            mixture = sum(weight * value for weight, value in zip(weights, own_values, strict=True))
            fixed = head_logits(teacher, hidden[j], fixed=True)
            total = total + kl(fixed, head_logits(teacher, mixture, fixed=True), temperature)
    return total, sum(len(ours) for _, ours in positions), right


@pytest.mark.usefixtures("piece_elements")
@pytest.mark.parametrize("vocabularies", [(9, 7), (6, 11)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("layout", [packed, unpacked])
def test_values_and_gradients_are_the_loops(projections: DskdProjections, layout, temperature, vocabularies) -> None:
    maker = Maker(EXAMPLES, vocabularies)
    # a likely and frequent token, so that the mixture is right sometimes
    assert maker.heads[1].bias_V is not None
    maker.heads[1].bias_V.data[1] += 3
    for drawn in maker.drawn:
        drawn[1][2].clamp_(max=1)
    maker.drawn[0][1][2][2] = 6
    teacher, student = layout(maker)
    expected, compared, right = loop_dskd(projections, teacher, student, temperature)
    assert compared == 5 + 1 + 1
    assert 0 < right < compared
    leaves = [*teacher.leaves(), *student.leaves(), *projections.parameters()]
    check_close(expected / compared, dskd(projections, teacher, student, temperature=temperature), leaves)
    check_close(expected / 50, dskd(projections, teacher, student, temperature=temperature, count=50), leaves)


def test_packed_is_unpacked(projections: DskdProjections) -> None:
    maker = Maker(EXAMPLES)
    torch.testing.assert_close(dskd(projections, *packed(maker)), dskd(projections, *unpacked(maker)))


def test_nothing_to_compare_is_zero_and_differentiable(projections: DskdProjections) -> None:
    maker = Maker([Example(1, 3), Example(3, 1)])
    teacher, student = maker.side(0, [[0, 1]], 0), maker.side(1, [[0, 1]], 1)
    loss = dskd(projections, teacher, student)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student.hidden)[0].any()


def test_models_in_bfloat16_learn_by_projections_in_float32() -> None:
    maker = Maker(EXAMPLES)
    sides = packed(maker)
    for side in sides:
        side.hidden, side.embeddings = side.hidden.detach().bfloat16(), side.embeddings.detach().bfloat16()
        side.head = type(side.head)(side.head.weight_VH.detach().bfloat16().requires_grad_())
    projections = DskdProjections(TEACHER_WIDTH, WIDTH)
    loss = dskd(projections, *sides)
    loss.backward()
    assert loss.dtype == torch.float32
    assert sides[1].head.weight_VH.grad is not None
    assert sides[1].head.weight_VH.grad.dtype == torch.bfloat16
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in projections.parameters())
