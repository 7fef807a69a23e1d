"""Weights of terms."""

from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from alm_pipeline.config import Balance, Divergence, ObjectiveConfig, Ramp, Term
from alm_pipeline.objective.divergences import DIVERGENCES
from alm_pipeline.objective.term_weights import gradmag, last_layer, uses_gradients, weights_at
from tests import tiny


def test_ramps_go_from_start_to_end_and_stay() -> None:
    objective = ObjectiveConfig(terms={"alm": Ramp(start=0.0, end=1.0, steps=4), "sft": 0.5})
    found = [weights_at(objective, step) for step in (0, 1, 4, 9)]
    assert [weights["alm"] for weights in found] == [0.0, 0.25, 1.0, 1.0]
    assert {weights["sft"] for weights in found} == {0.5}


@pytest.mark.parametrize("terms", [{}, {"alm": 0.0}, {"alm": -1.0}, {"alms": 1.0}, {"alm": {"start": 1.0}}])
def test_wrong_terms_are_refused(terms: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ObjectiveConfig.model_validate({"terms": terms})


def test_every_balance_is_known() -> None:
    found = {balance: uses_gradients(balance) for balance in get_args(Balance)}
    assert found == {"fixed": False, "temperature": False, "gradmag": True}


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_the_pull_of_a_chunk_is_the_same_at_every_temperature(divergence: Divergence) -> None:
    """`abs_exp` and the binary divergences approach a limit, the others have it at once."""
    gradients = []
    for temperature in (1e3, 1e4):
        objective = ObjectiveConfig(divergence=divergence, temperature=temperature, balance="temperature")
        student = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
        value = DIVERGENCES[divergence](torch.tensor([-3.0], dtype=torch.float64), student, temperature)
        (weights_at(objective, 0)["alm"] * value.sum()).backward()
        assert student.grad is not None
        gradients.append(student.grad.item())
    assert abs(gradients[0]) > 0.1
    assert gradients[0] == pytest.approx(gradients[1], rel=0.05)


def test_only_alm_has_a_temperature() -> None:
    objective = ObjectiveConfig(
        terms={"alm": Ramp(start=1, end=2, steps=2), "sft": 3.0}, temperature=5, balance="temperature"
    )
    assert weights_at(objective, 1) == {"alm": 7.5, "sft": 3.0}


def test_gradmag_gives_each_term_the_same_pull() -> None:
    torch.manual_seed(0)
    layer, steep = nn.Linear(3, 1), 1000.0
    output = layer(torch.randn(5, 3))
    terms: dict[Term, torch.Tensor] = {"alm": output.square().mean(), "sft": steep * (output - 1).abs().mean()}
    weights = gradmag(terms, {"alm": 1.0, "sft": 3.0}, list(layer.parameters()))
    norms = {}
    for term, value in terms.items():
        gradients = torch.autograd.grad(value, list(layer.parameters()), retain_graph=True)
        norms[term] = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert sum(weights.values()).item() == pytest.approx(1)
    assert (3 * weights["alm"] * norms["alm"]).item() == pytest.approx((weights["sft"] * norms["sft"]).item(), rel=1e-4)
    assert not any(weight.requires_grad for weight in weights.values())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_gradmag_leaves_out_what_has_no_weight_and_a_lone_term_has_all() -> None:
    layer = nn.Linear(2, 1)
    value = layer(torch.ones(1, 2)).square().sum()
    assert gradmag({"alm": value, "sft": value}, {"alm": 0.2}, list(layer.parameters()))["alm"].item() == 1
    assert list(gradmag({"alm": value, "sft": value}, {"alm": 0.2, "sft": 0.0}, list(layer.parameters()))) == ["alm"]


def test_the_last_layer_is_the_transformers() -> None:
    model = tiny.tiny_llama(300)
    found = last_layer(model.base_model)
    names = {name for name, value in model.named_parameters() if any(value is one for one in found)}
    assert names
    assert all(f"layers.{model.config.num_hidden_layers - 1}." in name for name in names)
    for one in found[1:]:
        one.requires_grad_(False)
    assert last_layer(model.base_model) == found[:1]
