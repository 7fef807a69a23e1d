"""The level of a student's new tokens: measured on its training examples, recorded, and the same after a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from alm_pipeline.config import AlmConfig, StudentConfig
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.duration import Durations, Rates
from alm_pipeline.planning.plan import Amount
from alm_pipeline.report import summarize, summary_rows
from alm_pipeline.training import distillation
from alm_pipeline.training.parallel.processes import Process
from alm_pipeline.transfer.level.level import set_level
from alm_pipeline.transfer.level.texts import LONGEST, sample_texts, training_texts
from alm_pipeline.transfer.level.words import ROUNDS, TOKENS
from alm_pipeline.transfer.zero_step import transfer
from storage.errors import UserError
from tests.alm_pipeline.training.loop.test_train import contents, trained


def moved(config: AlmConfig, target: str, **student: Any) -> AlmConfig:
    """The tiny run, with a student that gets the teacher's tokenizer."""
    return config.model_copy(update={"student": StudentConfig(model=config.student.model, tokenizer=target, **student)})


def rows(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.get_input_embeddings().weight.detach()
    return weight


@pytest.fixture(scope="module")
def pipeline(config: AlmConfig, gemma_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    made = moved(config, gemma_folder)
    made = made.model_copy(update={"train": made.train.model_copy(update={"steps": 0})})
    pipeline = Pipeline(made, str(tmp_path_factory.mktemp("level")))
    pipeline.run()
    return pipeline


def test_the_texts_are_training_examples_in_the_students_tokens(pipeline: Pipeline) -> None:
    texts = training_texts([pipeline.caches])
    assert 0 < sum(map(len, texts.ids)) <= TOKENS + LONGEST
    assert max(map(len, texts.ids)) <= LONGEST
    assert len(texts.kinds) == len(texts.byte_lengths) == sum(map(len, texts.ids))
    held_out = {tuple(row) for row in pipeline.distillation.held_out.column("student_tokens", "token_ids")}
    assert held_out
    assert not held_out & {tuple(row) for row in texts.ids}
    again = training_texts([pipeline.caches])
    assert all(np.array_equal(*pair) for pair in zip(texts.ids, again.ids, strict=True))


def test_what_was_found_is_recorded_and_shown(pipeline: Pipeline) -> None:
    manifest = pipeline.student.manifest()
    assert manifest
    level: Any = manifest.results["level"]
    assert level["bits_per_byte_with"] < level["bits_per_byte_without"]
    assert level["nats"] != 0
    shown = dict(summary_rows(summarize(pipeline), {}))["level of new tokens"]
    assert f"{level['nats']:.2f} nats" in shown
    assert shown in (pipeline.student.fetch() / "README.md").read_text()


def test_the_student_begins_at_its_level(
    pipeline: Pipeline, config: AlmConfig, gemma_folder: str, tmp_path: Path
) -> None:
    """The folder of a run without steps is the transfer, lowered on the run's texts."""
    folder = tmp_path / "moved"
    transferred = transfer(config.student.model, gemma_folder, folder, level="none")
    model = AutoModelForCausalLM.from_pretrained(folder)
    result = pipeline.distillation.initial_student()
    assert result.counts == transferred.counts
    saved = AutoModelForCausalLM.from_pretrained(pipeline.student.path)
    differs = (rows(saved) != rows(model)).any(-1)
    assert differs.sum() == transferred.counts["composed"] + transferred.counts.get("drawn", 0)


@pytest.mark.parametrize("level", ["none", 1.25])
def test_a_setting_is_another_student(pipeline: Pipeline, config: AlmConfig, gemma_folder: str, level: Any) -> None:
    other = Pipeline(moved(config, gemma_folder, level=level), pipeline.root)
    identity, own = other.student.identity["initialization"], pipeline.student.identity["initialization"]
    assert own == {"method": "fvt", "level": "measured"}
    assert identity == ({"method": "fvt"} if level == "none" else {"method": "fvt", "level": level})


def test_a_run_that_was_killed_ends_with_the_same_student(
    config: AlmConfig, gemma_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = moved(config, gemma_folder, initialization="focus")
    unbroken = trained(changed, tmp_path / "unbroken", None, monkeypatch)
    resumed = trained(changed, tmp_path / "resumed", 5, monkeypatch)
    assert contents(unbroken) == contents(resumed)


def test_other_processes_follow_the_first(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(distillation, "broadcast_from_first", lambda value: sent.append(value) or value)
    first = pipeline.distillation.initial_student()
    assert sent == [first.level]
    monkeypatch.setattr(distillation, "this_process", lambda: Process(1, 2, 1, 2))
    monkeypatch.setattr(distillation, "broadcast_from_first", lambda _: sent[0])
    monkeypatch.setattr(distillation, "set_level", None)
    second = pipeline.distillation.initial_student()
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_student_that_keeps_its_tokenizer_has_no_level(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    assert pipeline.distillation.initial_student().level is None
    assert "initialization" not in pipeline.student.identity


def test_a_plan_knows_how_long_it_takes(
    config: AlmConfig, gemma_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alm_pipeline.planning.speed.processor.scored_per_second", lambda *_: 100.0)

    def seconds(of: AlmConfig) -> float:
        planned = Durations(Pipeline(of, str(tmp_path)), Rates(train=10.0), None, None)
        amount = planned.seconds("train", Amount.known(100))
        assert amount
        return amount.value

    assert seconds(config) == seconds(moved(config, gemma_folder, level="none"))
    assert seconds(moved(config, gemma_folder)) == pytest.approx(seconds(config) + ROUNDS * TOKENS / 100)


def test_a_transfer_is_lowered_on_the_sample(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    plain = transfer(llama_folder, gemma_folder, tmp_path / "plain", level="none")
    measured = transfer(llama_folder, gemma_folder, tmp_path / "measured")
    assert plain.level is None
    assert plain.counts == measured.counts
    assert measured.level
    tokenizer = LoadedTokenizer(str(tmp_path / "plain"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    lowered = AutoModelForCausalLM.from_pretrained(tmp_path / "measured")
    new = (rows(model) != rows(lowered)).any(-1).numpy()
    found = set_level(model, new, lambda: sample_texts(tokenizer), "measured")
    assert found
    assert found.record() == measured.level.record()


@pytest.mark.bad_input
@pytest.mark.parametrize("level", ["high", "nan", "inf", 21, -20.5, None])
def test_a_level_that_is_none_is_refused(level: Any) -> None:
    with pytest.raises((ValidationError, UserError)):
        StudentConfig(model="one", tokenizer="two", level=level)
