"""What an ensemble's member computes in NaN stops generation, measures and tasks: no token is the likeliest of NaN."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alm_pipeline.ensemble import generation, loading
from alm_pipeline.ensemble.config import Mean
from alm_pipeline.ensemble.harness import HarnessModel
from alm_pipeline.ensemble.loading import LoadedMember, ensemble_of
from alm_pipeline.ensemble.logprobs import text_logprobs
from alm_pipeline.ensemble.model import EnsembleModel
from storage.errors import UserError
from tests import tiny

pytestmark = pytest.mark.bad_input


def spoiled(mean: Mean) -> EnsembleModel:
    """An ensemble whose second member overflows once it is loaded."""
    tokenizer = tiny.byte_level_tokenizer()
    members = [LoadedMember(tiny.tiny_llama(400, tied=tied), tokenizer, name=str(tied)) for tied in (True, False)]
    made = ensemble_of(members, mean)
    with torch.no_grad():
        members[1].model.model.norm.weight.fill_(float("inf"))  # type: ignore[union-attr, operator]
    return made


def _generate(model: EnsembleModel) -> object:
    return model.generate(**model.encode(["The"]), max_new_tokens=2)


USES: dict[str, Callable[[EnsembleModel], object]] = {
    "generation": _generate,
    "measures": lambda model: text_logprobs(model, ["The quick brown fox"]),
    "tasks": lambda model: HarnessModel(model)._loglikelihood_tokens([(None, [5, 6], [7])]),
}


@pytest.mark.parametrize("mean", ["probabilities", "logprobs"])
@pytest.mark.parametrize("use", USES)
def test_a_member_that_overflows_is_named(use: str, mean: Mean) -> None:
    with pytest.raises(UserError, match=r"member llama: its log-probabilities are NaN: .*float32"):
        USES[use](spoiled(mean))


def test_a_single_model_that_overflows_generates_nothing(
    llama_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in float16, say: its weights are finite, and its logits are not."""
    model, tokenizer = loading.load(llama_folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))  # type: ignore[union-attr, operator]
    monkeypatch.setattr(generation, "load", lambda *_, **__: (model, tokenizer))
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match="its logits are NaN or infinite"):
            generation.generate_text(llama_folder, "The", print, max_tokens=2, temperature=temperature)
    with pytest.raises(UserError, match="the log-probability of an answer is NaN"):
        HarnessModel(model, tokenizer)._loglikelihood_tokens([(None, [5, 6], [7])])


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-5])
def test_a_temperature_that_nothing_can_be_divided_by_is_refused(temperature: float, llama_folder: str) -> None:
    with pytest.raises(UserError, match="is too small to divide by: use 0"):
        generation.generate_text(llama_folder, "The", print, temperature=temperature)
