"""The loss of next tokens against its definition, one position at a time."""

import math

import pytest
import torch

from alm_pipeline.objective.bpm import bpm_loss


def test_the_loss_is_the_divergence_from_each_target() -> None:
    logprobs = torch.log_softmax(torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), -1)
    targets = [{0: 0.5, 3: 0.2}, {}, {1: 1.0}, {2: 0.1, 4: 0.3, 0: 0.6}]
    ids = torch.tensor([[*target, *[-1] * (3 - len(target))] for target in targets])
    values = torch.tensor([[*target.values(), *[0.0] * (3 - len(target))] for target in targets], dtype=torch.float64)
    listed = logprobs.gather(-1, ids.clamp(min=0)).where(ids >= 0, -torch.inf)
    others = torch.stack(
        [
            row[[k for k in range(5) if k not in target]].logsumexp(0)
            for row, target in zip(logprobs, targets, strict=True)
        ]
    )
    expected = 0.0
    for row, target in zip(logprobs.exp().tolist(), targets, strict=True):
        if target:
            rest, other = 1 - sum(target.values()), 1 - sum(row[id_] for id_ in target)
            expected += sum(p * math.log(p / row[id_]) for id_, p in target.items())
            expected += rest * math.log(rest / other) if rest > 1e-12 else 0.0
    assert bpm_loss(listed, others, values).item() == pytest.approx(expected / 3)
    assert bpm_loss(listed, others, values, count=torch.tensor(6)).item() == pytest.approx(expected / 6)


def test_a_position_without_a_target_has_no_gradient_and_no_part_in_the_loss() -> None:
    listed = torch.tensor([[-torch.inf, -torch.inf]], requires_grad=True)
    others = torch.zeros(1, requires_grad=True)
    loss = bpm_loss(listed, others, torch.zeros(1, 2))
    gradients = torch.autograd.grad(loss, [listed, others])
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


def test_a_target_of_all_that_the_student_can_say_has_no_rest() -> None:
    """A vocabulary may be smaller than the list."""
    listed = torch.tensor([[0.25, 0.75]]).log()
    loss = bpm_loss(listed, torch.tensor([-torch.inf]), torch.tensor([[0.25, 0.7499999]]))
    assert loss.item() == pytest.approx(0, abs=1e-6)
