"""Packing, accumulation and resuming are exact for each model family; a model that mixes examples is refused."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from alm_pipeline.config import AlmConfig, ObjectiveConfig, TrainConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.output_head import hidden_states
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.loop.train import train_student
from alm_pipeline.training.loop.training_run import TrainingRun
from alm_pipeline.training.model.isolation import check_isolation, check_positions
from alm_pipeline.training.model.terms import micro_batch_losses
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.training.architectures import ARCHITECTURES, attentions, tiny_architecture
from tests.alm_pipeline.training.data.test_batch_stream import Example, batch_of, example
from tests.alm_pipeline.training.loop.test_train import SMALL, FixedStream, Killed

VOCABULARY = HeadVocabulary(torch.arange(0, 1000, 3))
OBJECTIVE = ObjectiveConfig.model_validate({"temperature": 3.0, "terms": {"alm": 1, "sft": 0.5}})
CASES = [(name, attention) for name in ARCHITECTURES for attention in attentions(name)]
# long rows beside short ones, an example of one token, one longer than any sliding window, padding
ROWS = [[20, 1, 33, 14], [9, 5], [40]]
Batches = list[dict[str, torch.Tensor]]


def examples() -> list[list[Example]]:
    return [[example(length, 77 + length) for length in row] for row in ROWS]


def batches(*of: list[list[Example]]) -> Batches:
    return [dict(vars(batch_of(rows))) for rows in of]


def loss_and_gradients(model: PreTrainedModel, step: Batches) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and gradients of all these micro-batches."""
    model.zero_grad()
    counts, total = LossCounts.of(*step), 0.0
    for batch in step:
        terms = micro_batch_losses(model, batch, VOCABULARY, OBJECTIVE, counts).terms
        loss = terms["alm"] + 0.5 * terms["sft"]
        loss.backward()
        total += loss.item()
    return total, {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_packed_rows_give_the_loss_of_unpacked_examples(name: str, attention: str) -> None:
    """One batch of packed rows, one micro-batch per row, and one per example give the same loss and gradients."""
    model = tiny_architecture(name, 1000, attention)
    assert model.training
    rows = examples()
    expected, gradients = loss_and_gradients(model, batches(*([[item]] for row in rows for item in row)))
    for step in (batches(rows), batches(*([row] for row in rows))):
        loss, found = loss_and_gradients(model, step)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert found.keys() == gradients.keys() == {name for name, _ in model.named_parameters()}
        for name, value in found.items():
            scale = gradients[name].abs().max().item()
            torch.testing.assert_close(value, gradients[name], rtol=1e-3, atol=1e-4 * scale + 1e-9)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_no_example_attends_to_another(name: str, attention: str) -> None:
    """Changing the tokens of one example, or the padding, leaves all other hidden states bitwise the same."""
    model = tiny_architecture(name, 1000, attention)
    (batch,) = batches(examples())
    ids, positions = batch["token_ids_BS"], batch["position_ids_BS"]
    before = hidden_states(model, ids, positions)
    assert before.isfinite().all()
    places = [(r, sum(row[:k]), length) for r, row in enumerate(ROWS) for k, length in enumerate(row)]
    padding = [(r, sum(row), ids.shape[1] - sum(row)) for r, row in enumerate(ROWS)]
    for row, start, length in places + padding:
        changed = ids.clone()
        changed[row, start : start + length] += 1
        after = hidden_states(model, changed, positions)
        same = (after == before).all(-1)
        inside = torch.zeros_like(same)
        inside[row, start : start + length] = True
        assert same[~inside].all()
        assert not same[inside].any()


@pytest.mark.parametrize(("name", "attention"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_separate_examples_are_accepted(name: str, attention: str, dtype: torch.dtype) -> None:
    model = tiny_architecture(name, 1000, attention)
    check_isolation(model, dtype)
    assert model.training


def test_rounding_by_shape_is_not_taken_for_another_example() -> None:
    """Kernels round by a batch's shape: of a trained SmolLM2, states alone and packed differed by 9 % in bfloat16."""
    model = tiny_architecture("llama, tied", 1000, "sdpa")

    def round_by_shape(_module: nn.Module, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + 0.05 * (output.shape[1] % 3))

    model.model.norm.register_forward_hook(round_by_shape)
    check_isolation(model, torch.bfloat16)
    with pytest.raises(UserError, match="attends across packed examples"):
        check_isolation(model, torch.float32)


MIXING = {
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 32},
    "Bloom": {"n_head": 4, "n_layer": 2},
    "Mamba": {},
    "RecurrentGemma": {"num_hidden_layers": 3, "lru_width": 32},
}


@pytest.mark.parametrize("family", MIXING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_mix_examples_are_refused(family: str, dtype: torch.dtype) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(sizes | MIXING[family]), initializer_range=0.3)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(UserError, match=r": it attends across packed examples .* \(train\.row_tokens: 1\)"):
        check_isolation(model, dtype)


def test_a_model_that_mixes_examples_trains_with_one_example_per_row(config: AlmConfig, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(config.student.model)
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()

    def run(**changes: int) -> list[dict[str, float]]:
        train = config.train.model_copy(update={"steps": 2, **changes})
        stream = BatchStream(pipeline.caches, config.objective, train)
        return train_student(TrainingRun(model, stream, SMALL, config.objective, train, tmp_path / "checkpoints"))

    model.model.forward = partial(model.model.forward, attention_mask=torch.ones(1, 1, 1, 1))
    with pytest.raises(UserError, match="attends across packed examples"):
        run()
    assert len(run(row_tokens=1)) == 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_positions_from_0_are_each_familys_own(name: str) -> None:
    check_positions(tiny_architecture(name, 1000, "eager"))


@pytest.mark.bad_input
def test_a_model_that_counts_its_positions_from_2_is_not_trained(config: AlmConfig, tmp_path: Path) -> None:
    """As RoBERTa does. Batches would train it at other positions than the teacher's or the evaluation's scores have."""
    model = tiny.tiny_gpt2(400)
    whole = model.transformer.forward

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **settings: Any) -> Any:
        own = torch.arange(2, 2 + input_ids.shape[1])[None] if position_ids is None else position_ids
        return whole(input_ids=input_ids, position_ids=own, **settings)

    model.transformer.forward = forward
    train = config.train.model_copy(update={"steps": 1, "row_tokens": 1})
    stream = FixedStream([[[example(12)]]])
    with pytest.raises(UserError, match="it does not count a text's positions from 0"):
        train_student(TrainingRun(model, stream, SMALL, config.objective, train, tmp_path / "checkpoints"))


class ResumableStream(FixedStream):
    """A stream that can resume. With `fatal`, it raises Killed in place of that batch."""

    def __init__(self, fatal: int | None = None) -> None:
        super().__init__([[[example(30, seed)], [example(20, seed), example(7, seed)]] for seed in range(6)])
        self.at, self.fatal = 0, fatal

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while self.at < len(self.batches):
            if self.at == self.fatal:
                raise Killed
            self.at += 1
            yield self.batches[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_run_resumes_from_its_checkpoint_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """Uses dropout, if the family has it."""
    train = TrainConfig(steps=6, checkpoint_steps=2, row_tokens=64, learning_rate=1e-3)

    def run(folder: str, fatal: int | None = None) -> tuple[list[dict[str, float]], PreTrainedModel]:
        model = tiny_architecture(name, 300)
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.1
        stream = ResumableStream(fatal)
        log = train_student(TrainingRun(model, stream, SMALL, OBJECTIVE, train, tmp_path / folder))
        return log, model

    expected, unbroken = run("unbroken")
    with pytest.raises(Killed):
        run("killed", fatal=5)
    found, resumed = run("killed")
    assert [entry["loss"] for entry in found] == [entry["loss"] for entry in expected]
    for (name, value), again in zip(unbroken.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(value, again), name
