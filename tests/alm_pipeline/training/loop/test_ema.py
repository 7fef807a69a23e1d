"""The moving average of the weights, compared with a loop over the formula."""

from pathlib import Path

import pytest
import torch
from torch import nn

from alm_pipeline.training.loop.ema import EmaWeights


def moved(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in model.parameters():
            value += torch.randn(value.shape, generator=generator)


@pytest.mark.parametrize("decay", [0.2, 0.99])
def test_averages_follow_the_formula(decay: float) -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    averages, expected = EmaWeights(model, decay), model.weight.detach().clone().double()
    for step in range(1, 30):
        moved(model, step)
        averages.update(step)
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * model.weight.detach().double()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    with averages.in_place():
        torch.testing.assert_close(model.weight.double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(model.bias, bias)
    assert torch.equal(model.weight, weight)


def test_saved_averages_resume_to_the_same_bits(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    unbroken = EmaWeights(model, 0.9)
    moved(model, 1)
    unbroken.update(1)
    unbroken.save(tmp_path)
    resumed = EmaWeights(model, 0.9)
    resumed.load(tmp_path)
    moved(model, 2)
    for averages in (unbroken, resumed):
        averages.update(2)
    found = []
    for averages in (unbroken, resumed):
        with averages.in_place():
            found.append(model.weight.detach().clone())
    assert torch.equal(*found)


def test_weights_of_lower_precision_are_averaged_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    averages = EmaWeights(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for step in range(10_000, 10_100):
        averages.update(step)
    assert averages._averages["weight"].dtype == torch.float32
    before = averages._averages["weight"].item()
    averages.update(20_000)
    assert averages._averages["weight"].item() != before
