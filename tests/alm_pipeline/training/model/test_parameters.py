"""Which parameters are trained, at which rates, and with which schedule."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from alm_pipeline.config import AlmConfig, TrainConfig
from alm_pipeline.training.model.parameters import freeze, parameter_groups
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.training.data.test_batch_stream import example
from tests.alm_pipeline.training.loop.test_train import FixedStream, log_of


def test_groups_differ_in_rate_and_decay() -> None:
    model = tiny.tiny_llama(300)
    names = {value: name for name, value in model.named_parameters()}
    decayed = [name for name in names.values() if "norm" not in name]
    groups = parameter_groups(model, decayed, 0.1, {"*embed_tokens*": 1e-3, "*layers.0.*": 1e-5, "*": 1e-4})
    assert {value for group in groups for value in group["params"]} == set(names)
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        for value in group["params"]:
            name = names[value]
            rate = 1e-3 if "embed_tokens" in name else 1e-5 if "layers.0." in name else 1e-4
            assert group["lr"] == rate
            assert group["weight_decay"] == (0.0 if "norm" in name else 0.1)
    assert all("lr" not in group for group in parameter_groups(model, decayed, 0.1, {}))


def test_patterns_without_a_match_are_refused() -> None:
    model = tiny.tiny_llama(300)
    with pytest.raises(UserError, match=r"train\.freeze: \*attn9\* matches no parameter; the names are model\."):
        freeze(model, ["*attn9*"])
    with pytest.raises(UserError, match="nothing would be trained"):
        freeze(model, ["*norm*", "*"])
    model = tiny.tiny_llama(300)
    freeze(model, ["*embed_tokens*"])
    with pytest.raises(UserError, match=r"train\.learning_rates: \*embed_tokens\* matches no parameter"):
        parameter_groups(model, [], 0.0, {"*embed_tokens*": 1e-3})


def steps(count: int) -> FixedStream:
    return FixedStream([[[example(30, seed)]] for seed in range(count)])


def trained(config: AlmConfig, folder: Path, **changes: Any) -> tuple[Any, Any, Any]:
    """Return the log, and the student's parameters before and after."""
    before = dict(AutoModelForCausalLM.from_pretrained(config.student.model).named_parameters())
    log, model = log_of(config, steps(4), folder, steps=4, weight_decay=0.0, **changes)
    return log, before, dict(model.named_parameters())


def test_frozen_parameters_stay_and_the_others_learn(config: AlmConfig, tmp_path: Path) -> None:
    _, before, after = trained(config, tmp_path, freeze=("*.mlp.*", "*embed_tokens*"))
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (".mlp." in name or "embed_tokens" in name), name


def test_parameters_move_by_their_own_rate(config: AlmConfig, tmp_path: Path) -> None:
    """Adam's first step moves each parameter by its rate."""
    rates = {"*layers.0.*": 1e-5, "*layers.1.*": 1e-3}
    model = AutoModelForCausalLM.from_pretrained(config.student.model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    settings = {"steps": 1, "learning_rates": rates, "learning_rate": 1e-4, "weight_decay": 0.0, "warmup_steps": 0}
    _, trained = log_of(config, steps(1), tmp_path, **settings)
    for name, value in trained.named_parameters():
        rate = next((rates[pattern] for pattern in rates if pattern.strip("*") in name), 1e-4)
        assert (value - before[name]).abs().max().item() == pytest.approx(rate, rel=0.1), name


def test_schedules(config: AlmConfig, tmp_path: Path) -> None:
    rates = {}
    for name, settings in {
        "linear": {},
        "cosine": {"schedule": "cosine"},
        "wsd": {"schedule": "wsd", "decay_steps": 4},
    }.items():
        changes = {"steps": 10, "warmup_steps": 2, "learning_rate": 1.0e-3, **settings}
        log, _ = log_of(config, steps(10), tmp_path / name, **changes)
        rates[name] = [1e3 * rate for rate in log["learning_rate"]]
    straight = [k / 8 for k in range(8, 0, -1)]
    assert rates["linear"] == pytest.approx([0, 0.5, *straight])
    cosine = [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert rates["cosine"] == pytest.approx([0, 0.5, *cosine], abs=1e-9)
    assert rates["wsd"] == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25], abs=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "linear", "decay_steps": 3},
        {"schedule": "wsd", "steps": 10, "warmup_steps": 5, "decay_steps": 6},
        {"schedule": "exponential"},
        {"learning_rates": {"*": 0.0}},
    ],
)
def test_inconsistent_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(settings)
