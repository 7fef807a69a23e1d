"""The latents term, checked against loops in float64."""

import pytest
import torch

from alm_pipeline.objective.latents import latents_loss


def loop(teacher: torch.Tensor, student: torch.Tensor, count: int) -> float:
    chunks, channels = teacher.shape
    total = 0.0
    for channel in range(channels):
        scale = sum(float(teacher[k, channel]) ** 2 for k in range(chunks)) / chunks
        total += sum((float(teacher[k, channel]) - float(student[k, channel])) ** 2 / scale for k in range(chunks))
    return total / channels / count


@pytest.mark.parametrize("chunks", [1, 7])
def test_latents_are_the_loop(chunks: int) -> None:
    generator = torch.Generator().manual_seed(chunks)
    teacher, student = torch.randn(2, chunks, 5, generator=generator, dtype=torch.float64)
    assert latents_loss(teacher, student).item() == pytest.approx(loop(teacher, student, chunks), rel=1e-5)
    assert latents_loss(teacher, student, 20).item() == pytest.approx(loop(teacher, student, 20), rel=1e-5)


def test_zero_where_equal_one_for_zeros_and_no_gradient_for_the_teacher() -> None:
    teacher = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    student = torch.zeros(6, 3, requires_grad=True)
    assert latents_loss(teacher, teacher.detach()).item() == 0
    loss = latents_loss(teacher, student)
    assert loss.item() == pytest.approx(1.0, rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_no_chunk_gives_zero() -> None:
    student = torch.zeros(0, 3, requires_grad=True)
    loss = latents_loss(torch.zeros(0, 4), student)
    assert loss.item() == 0
    loss.backward()
