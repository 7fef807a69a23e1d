"""A small model of a class does what a large one of it does: it is refused, and accepted, in the same places."""

import pytest
import torch
import transformers
from transformers import PreTrainedConfig

from alm_pipeline.models.output_head import check_output_head
from alm_pipeline.preflight.small_model import small_model
from alm_pipeline.training.model.isolation import check_isolation
from storage.errors import UserError
from tests.alm_pipeline.training.architectures import ARCHITECTURES

SEPARATING = sorted({family for family, _ in ARCHITECTURES.values()} | {"Olmo2", "Qwen3Moe", "GPTNeoX", "Granite"})
MIXING = ["OPT", "Bloom", "Mamba", "RecurrentGemma"]


def published(family: str) -> PreTrainedConfig:
    """The configuration that the class has by itself: that of a published model, of billions of parameters."""
    text = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    config: PreTrainedConfig = text()
    return config


@pytest.mark.parametrize("family", SEPARATING)
def test_classes_that_separate_examples_are_accepted(family: str) -> None:
    model = small_model(published(family), family)
    assert model is not None
    assert sum(value.numel() for value in model.parameters()) < 1_000_000
    check_output_head(model)
    check_isolation(model, torch.float32)


@pytest.mark.parametrize("family", MIXING)
def test_classes_that_mix_examples_are_refused_or_not_made_small(family: str) -> None:
    model = small_model(published(family), family)
    if model is not None:
        with pytest.raises(UserError, match="attends across packed examples"):
            check_isolation(model, torch.float32)


def test_the_configuration_itself_stays_as_it_is() -> None:
    config = published("Gemma3")
    before = config.to_dict()
    small_model(config, "gemma")
    assert config.to_dict() == before


def test_random_numbers_stay_as_they_are() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    small_model(published("Llama"), "llama")
    assert torch.equal(torch.random.get_rng_state(), before)
