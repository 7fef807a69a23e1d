"""Training: packed rows give the loss of each example, and an interrupted run ends as an uninterrupted one."""

import itertools
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from alm_pipeline.config import AlmConfig, FilesSource, ObjectiveConfig, Term, TrainConfig, TrainedTokenizer
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training import stage
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.loop import train as training
from alm_pipeline.training.loop.train import train_student
from alm_pipeline.training.loop.training_run import TrainingRun
from alm_pipeline.training.model.terms import micro_batch_losses
from storage.folders import CHECKPOINTS
from tests import tiny
from tests.alm_pipeline.training.data.test_batch_stream import Example, batch_of, example
from tests.alm_pipeline.training.killing import Killed, kill_at
from tests.corpora import write_chats

VOCABULARY = HeadVocabulary(torch.arange(0, 1000, 3))
SMALL = HeadVocabulary(torch.arange(0, 300, 3))


def losses_of(
    model: PreTrainedModel, rows: list[list[Example]], objective: ObjectiveConfig
) -> dict[Term, torch.Tensor]:
    batch = vars(batch_of(rows))
    counts = LossCounts.of(batch)
    return micro_batch_losses(model, batch, VOCABULARY, objective, counts).terms


def test_sft_is_the_cross_entropy_of_transformers() -> None:
    model = tiny.tiny_llama(1000)
    item = example(30, 1)
    ids = torch.from_numpy(item.token_ids.astype(np.int64))[None]
    expected = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(losses_of(model, [[item]], ObjectiveConfig())["sft"], expected)


def trained(config: AlmConfig, root: Path, kill_after: int | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the pipeline. With `kill_after`, first interrupt a run after that step."""
    pipeline = Pipeline(config, str(root))
    if kill_after is not None:
        with monkeypatch.context() as patch:
            patch.setattr(training.TrainingProgress, "on_step_end", kill_at(kill_after))
            with pytest.raises(Killed):
                pipeline.run()
    pipeline = Pipeline(config, str(root))
    pipeline.run()
    return pipeline.student.path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}  # not runs/


@pytest.fixture(scope="module")
def unbroken(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student that was trained without an interruption."""
    pipeline = Pipeline(config, str(tmp_path_factory.mktemp("unbroken")))
    pipeline.run()
    return pipeline.student.path


@pytest.mark.parametrize("kill_after", [1, 3, 4])
def test_an_interrupted_run_ends_with_the_same_bytes(
    config: AlmConfig, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int
) -> None:
    resumed = trained(config, tmp_path / "resumed", kill_after, monkeypatch)
    assert contents(unbroken) == contents(resumed)
    assert {"model.safetensors", "tokenizer.json", "metrics.parquet", "manifest.json"} <= set(contents(unbroken))
    assert pl.read_parquet(unbroken / "metrics.parquet")["step"].to_list() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("warmup_steps", [0, 30])  # a rate that has not fallen to 0 would reveal an additional step
def test_a_run_that_was_killed_after_its_last_step_does_no_more_steps(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup_steps: int
) -> None:
    train = config.train.model_copy(update={"warmup_steps": warmup_steps})
    config = config.model_copy(update={"train": train})
    unbroken = trained(config, tmp_path / "unbroken", None, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "save_student", _killed)
        with pytest.raises(Killed):
            Pipeline(config, str(tmp_path / "resumed")).run()
    resumed = trained(config, tmp_path / "resumed", None, monkeypatch)
    assert contents(unbroken) == contents(resumed)


def _killed(*_: Any) -> None:
    raise Killed


def log_of(config: AlmConfig, stream: Any, folder: Path, **changes: Any) -> tuple[pl.DataFrame, PreTrainedModel]:
    """Train on the stream. Returns the log and the trained model."""
    model = AutoModelForCausalLM.from_pretrained(config.student.model)
    train = config.train.model_copy(update=changes)
    log = train_student(TrainingRun(model, stream, SMALL, config.objective, train, folder))
    return pl.DataFrame(log), model


class FixedStream(IterableDataset[dict[str, torch.Tensor]]):
    """A stream of fixed batches."""

    def __init__(self, rows: list[list[list[Example]]]) -> None:
        self.batches = [vars(batch_of(batch)) for batch in rows]
        for batch in self.batches:
            batch["token_ids_BS"] %= 300

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("divergence", ["binary_ce", "k3"])
def test_accumulation_changes_nothing_but_rounding(config: AlmConfig, tmp_path: Path, divergence: str) -> None:
    """One batch and three batches with different numbers of chunks give the same: the mean is over all chunks."""
    objective = ObjectiveConfig.model_validate({"terms": {"alm": 1, "sft": 0.5}, "divergence": divergence})
    config = config.model_copy(update={"objective": objective})
    steps = [[[[example(n, seed)], [example(4 * n, seed)], [example(12, seed)]] for n in (5, 15)] for seed in (1, 2)]
    whole = FixedStream([rows for step in steps for rows in step])
    parts = FixedStream([[row] for step in steps for rows in step for row in rows])
    assert len({len(batch["last_token_C"]) for batch in parts.batches}) > 2
    one, model = log_of(config, whole, tmp_path / "whole", steps=4, max_grad_norm=0.0)
    other, same = log_of(config, parts, tmp_path / "parts", steps=4, max_grad_norm=0.0, accumulation=3)
    columns = ["loss", "alm", "sft", "kl", "chunks", "tokens", "chunk_tokens", "used_share", "grad_norm"]
    np.testing.assert_allclose(other.select(columns), one.select(columns), rtol=1e-4)
    for value, again in zip(model.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(again, value, rtol=0, atol=2e-5)


def test_gradmag_weights_sum_to_one_and_are_logged(config: AlmConfig, tmp_path: Path) -> None:
    objective = ObjectiveConfig(terms={"alm": 1.0, "sft": 1.0}, balance="gradmag")
    config = config.model_copy(update={"objective": objective})
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    log, _ = log_of(config, BatchStream(pipeline.caches, objective, config.train), tmp_path / "checkpoints")
    np.testing.assert_allclose(log["alm_weight"] + log["sft_weight"], 1.0, rtol=1e-5)
    assert log["alm_weight"].n_unique() > 1
    np.testing.assert_allclose(log["loss"], log["alm_weight"] * log["alm"] + log["sft_weight"] * log["sft"], rtol=1e-5)


def test_chunkings_that_look_at_tokens_have_longer_chunks_than_the_finest(config: AlmConfig, tmp_path: Path) -> None:
    tokens = {}
    for chunking in ("unconstrained", "space", "anchor", "pair_bias"):
        objective = ObjectiveConfig.model_validate({"chunking": chunking, "gamma": 0.0})
        pipeline = Pipeline(config.model_copy(update={"objective": objective}), str(tmp_path))
        pipeline.run()
        log = pl.read_parquet(pipeline.student.path / "metrics.parquet")
        tokens[chunking] = log["chunk_tokens"].mean()
    assert tokens["anchor"] >= tokens["space"] > 1.5 * tokens["unconstrained"]
    assert tokens["pair_bias"] > tokens["unconstrained"]


def test_only_assistant_turns_are_learned(config: AlmConfig, tmp_path: Path) -> None:
    source = FilesSource(urls=(write_chats(tmp_path / "chats.jsonl", answer="It is {}."),))
    corpus = config.corpus.model_copy(update={"source": source, "messages": "messages"})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path / "data"))
    pipeline.cache()
    tokenizer = AutoTokenizer.from_pretrained(config.student.model)
    objective = ObjectiveConfig(assistant_only=True, chunking="unconstrained")
    for batch in itertools.islice(iter(BatchStream(pipeline.caches, objective, config.train)), 3):
        ids = batch["token_ids_BS"].flatten()
        for of in (batch["predicted_N"], batch["covered_N"]):
            spelled = tokenizer.decode(ids[of])
            answers = spelled.split("<|im_end|>")
            assert len(answers) > 2
            assert all(answer.startswith("It is ") for answer in answers[:-1])
            assert not answers[-1]


def test_two_runs_at_once_train_one_student(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pipeline(config, str(tmp_path)).cache()
    trained_at: list[float] = []

    def counted(run: TrainingRun) -> Any:
        trained_at.append(time.monotonic())
        return train_student(run)

    monkeypatch.setattr(stage, "train_student", counted)
    with ThreadPoolExecutor(2) as pool:
        manifests = list(pool.map(lambda _: Pipeline(config, str(tmp_path)).train(), range(2)))
    assert manifests[0] == manifests[1]
    assert len(trained_at) == 1


def test_a_student_learns_its_teacher(config: AlmConfig, tmp_path: Path) -> None:
    """Self-distillation to a new tokenizer: the divergence falls, and plain transformers loads the result."""
    student = config.student.model_copy(update={"tokenizer": TrainedTokenizer(vocab_size=320)})
    train = config.train.model_copy(update={"steps": 30, "learning_rate": 3e-3})
    config = config.model_copy(update={"teacher": config.student.model, "student": student, "train": train})
    pipeline = Pipeline(config, str(tmp_path))
    results = pipeline.run().results
    metrics = pl.read_parquet(pipeline.student.path / "metrics.parquet")
    assert metrics["kl"].tail(5).mean() < 0.7 * metrics["kl"].head(5).mean()
    assert set(results["initialization"]) <= {"copied", "composed", "drawn"}
    assert sum(results["initialization"].values()) == 320
    model = AutoModelForCausalLM.from_pretrained(pipeline.student.path)
    tokenizer = AutoTokenizer.from_pretrained(pipeline.student.path)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 320
    saved, source = (tokenizer, AutoTokenizer.from_pretrained(pipeline.tokenizer("student").file.parent))
    assert saved("The quick 東京").input_ids == source("The quick 東京").input_ids
    assert saved.chat_template == tiny.CHATML
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    generated = model.generate(**tokenizer("The quick", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert generated.shape[1] > len(tokenizer("The quick").input_ids)


def test_a_finished_student_is_not_trained_again(config: AlmConfig, tmp_path: Path) -> None:
    first = Pipeline(config, str(tmp_path))
    manifest = first.run()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert Pipeline(config, str(tmp_path)).run() == manifest
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before
    assert not (first.student.path / CHECKPOINTS).exists()


def test_caches_serve_other_objectives(config: AlmConfig, tmp_path: Path) -> None:
    """A new γ, temperature or number of steps repeats no stage before training."""
    first, objective = Pipeline(config, str(tmp_path)), ObjectiveConfig(gamma=0.5, temperature=1.0)
    other = Pipeline(config.model_copy(update={"objective": objective}), str(tmp_path))
    assert {name: dataset.url for name, dataset in first.caches.items()} == {
        name: dataset.url for name, dataset in other.caches.items()
    }
    first.cache()
    assert first.student.url != other.student.url


def test_a_checkpoint_comes_back_from_an_object_store(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed on one machine resumes from its last checkpoint on another."""
    root = f"memory://{tmp_path.name}"
    restored: list[dict[str, object]] = []
    original = BatchStream.load_state_dict

    def watching(self: BatchStream, state: dict[str, object]) -> None:
        restored.append(state)
        original(self, state)

    monkeypatch.setattr(BatchStream, "load_state_dict", watching)
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "machine"))
    pipeline = Pipeline(config, root)
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingProgress, "on_step_end", kill_at(5))
        with pytest.raises(Killed):
            pipeline.run()
    shutil.rmtree(tmp_path / "machine")
    manifest = Pipeline(config, root).run()
    stream = BatchStream(pipeline.caches, config.objective, config.train)
    assert len(list(itertools.islice(iter(stream), 4))) == 4
    assert restored == [stream.state_dict()]
    unbroken = Pipeline(config, str(tmp_path / "local")).run()
    assert manifest.files["model.safetensors"] == unbroken.files["model.safetensors"]


def test_no_steps_only_swaps_the_tokenizer(config: AlmConfig, tmp_path: Path) -> None:
    train = TrainConfig(steps=0)
    results = Pipeline(config.model_copy(update={"train": train}), str(tmp_path)).run().results
    bits = results["held_out_bits_per_byte"]
    assert bits["student_before"] == bits["student_after"]


def test_train_student_reports_every_step(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    model = tiny.tiny_llama(400)
    stream = BatchStream(pipeline.caches, config.objective, config.train)
    log = train_student(TrainingRun(model, stream, SMALL, config.objective, config.train, tmp_path / "checkpoints"))
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "kl", "alm", "sft", "chunks", "tokens", "learning_rate"} <= set(log[0])


def test_checkpoints_left_beside_the_manifest_are_removed(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    manifest = pipeline.run()
    left = Path(pipeline.student.url) / "checkpoints" / "checkpoint-6" / "model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    assert Pipeline(config, str(tmp_path)).train() == manifest
    assert not pipeline.student.has("checkpoints")
