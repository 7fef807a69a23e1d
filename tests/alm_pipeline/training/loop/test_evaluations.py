"""Evaluation during training: its results, that it does not affect training, and what it decides."""

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alm_pipeline.config import AlmConfig, EvaluationConfig, HeldOutMetric
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.training import stage
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.packing import plan_batches
from alm_pipeline.training.loop.evaluations import EVALUATIONS, SAMPLES, Evaluation, Evaluations
from alm_pipeline.training.loop.health import diagnose_step
from alm_pipeline.training.loop.trainer import AlmTrainer
from alm_pipeline.training.student.evaluator import HeldOutEvaluator
from alm_pipeline.training.student.save import METRICS
from storage.errors import UserError
from storage.folders import CHECKPOINTS
from tests.corpora import write_chats

Run = Callable[..., Pipeline]
DECIDING = EvaluationConfig(steps=1, samples=1, sample_tokens=4, student="best", patience=3)


@pytest.fixture(scope="module")
def cached(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cached")
    Pipeline(config, str(root)).cache()
    return root


@pytest.fixture
def pipeline(config: AlmConfig, cached: Path, tmp_path: Path) -> Run:
    """pipeline(name, train={…}, evaluation=…) returns a pipeline whose caches exist."""

    def prepared(
        name: str, train: dict[str, Any] | None = None, evaluation: EvaluationConfig | None = None
    ) -> Pipeline:
        if not (tmp_path / name).exists():
            shutil.copytree(cached, tmp_path / name)
        changes = {
            "train": config.train.model_copy(update=train or {}),
            "evaluation": evaluation or config.evaluation,
        }
        return Pipeline(config.model_copy(update=changes), str(tmp_path / name))

    return prepared


def evaluations(pipeline: Pipeline) -> pl.DataFrame:
    return pl.read_parquet(pipeline.student.path / "evaluations.parquet")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_does_not_change_training(pipeline: Run, dtype: str) -> None:
    often = pipeline("often", {"dtype": dtype}, EvaluationConfig(steps=1, max_examples=5, samples=2, sample_tokens=3))
    seldom = pipeline("seldom", {"dtype": dtype}, EvaluationConfig(steps=1000, samples=0))
    assert often.student.name == seldom.student.name
    files = [run.train().files for run in (often, seldom)]
    for name in ("model.safetensors", "metrics.parquet"):
        assert files[0][name] == files[1][name]
    assert evaluations(often)["step"].to_list() == [0, 1, 2, 3, 4, 5, 6]
    assert evaluations(seldom)["step"].to_list() == [0, 6]


def test_the_rows_match_the_saved_student(pipeline: Run) -> None:
    run = pipeline("rows", evaluation=EvaluationConfig(steps=4, samples=2, sample_tokens=6))
    bits = run.train().results["held_out_bits_per_byte"]
    rows = evaluations(run)
    assert rows["step"].to_list() == [0, 4, 6]
    assert bits["student_before"] == rows["bits_per_byte"][0]
    assert bits["student_after"] == rows["bits_per_byte"][-1]
    saved = load_model(str(run.student.path), "float32")
    tokenizer = LoadedTokenizer(str(run.student.path))
    scorer = Scorer.of(saved, tokenizer)
    student = run.distillation.held_out.student
    assert student.bits_per_byte(student.score(scorer)) == pytest.approx(bits["student_after"], rel=1e-6)
    evaluator = HeldOutEvaluator(run.distillation.held_out, run.config, HeadVocabulary.of(saved, tokenizer), tokenizer)
    again = evaluator(saved)
    assert set(get_args(HeldOutMetric)) <= again.metrics.keys() <= set(EVALUATIONS.names)
    assert again.metrics["kl"] == pytest.approx(rows["kl"][-1], rel=1e-5)
    assert again.metrics["alm"] == pytest.approx(rows["alm"][-1], rel=1e-5)
    text = (run.student.path / "samples.txt").read_text()
    assert text.count("════ step") == 3
    assert all(f"{sample.prompt}▶{sample.continuation}" in text for sample in again.samples)
    stored = pq.read_table(run.student.path / "samples.parquet")
    assert stored.schema == SAMPLES
    assert list(zip(stored["step"].to_pylist(), stored["sample"].to_pylist(), strict=True)) == [
        (step, number) for step in (0, 4, 6) for number in range(2)
    ]
    assert stored.to_pylist()[-1] == {"step": 6, "sample": 1, **asdict(again.samples[1])}
    loaded, ids = AutoTokenizer.from_pretrained(run.student.path), list(evaluator.prompts(saved)[0])
    end = len(ids) + 6
    while len(ids) < end and ids[-1] != loaded.eos_token_id:
        ids.append(int(saved(torch.tensor([ids])).logits[0, -1].argmax()))
    assert loaded.decode(ids[end - 6 :]) == again.samples[0].continuation


def test_a_few_examples_are_drawn_and_the_manifest_covers_all(pipeline: Run) -> None:
    run = pipeline("few", {"steps": 2}, EvaluationConfig(max_examples=3, samples=0))
    bits = run.train().results["held_out_bits_per_byte"]
    whole = pipeline("all", {"steps": 2}, EvaluationConfig(max_examples=None, samples=0))
    assert bits == whole.train().results["held_out_bits_per_byte"]
    assert evaluations(run)["examples"].to_list() == [3, 3]
    drawn, again, every = (HeldOut.read(run.caches, most) for most in (3, 3, None))
    ids = [held_out.drawn["examples"]["id"].to_pylist() for held_out in (drawn, again, every)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 3
    assert set(ids[0]) < set(ids[2])
    assert not drawn.is_all
    assert every.is_all
    assert drawn.student.ids[0].tolist() == every.student.ids[0].tolist()


class Killed(Exception):
    pass


def killing(original: Callable[..., Any], step: int) -> Callable[..., Any]:
    def killed(self: AlmTrainer, *arguments: Any, **settings: Any) -> Any:
        if self.state.global_step == step:
            raise Killed
        return original(self, *arguments, **settings)

    return killed


@pytest.fixture(scope="module")
def with_everything(config: AlmConfig) -> AlmConfig:
    train = config.train.model_copy(update={"ema": 0.5, "keep_checkpoints": 2, "learning_rate": 3e-2})
    return config.model_copy(update={"train": train, "evaluation": DECIDING})


@pytest.fixture(scope="module")
def unbroken(with_everything: AlmConfig, cached: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student with everything, trained without an interruption."""
    root = shutil.copytree(cached, tmp_path_factory.mktemp("unbroken") / "data")
    pipeline = Pipeline(with_everything, str(root))
    pipeline.train()
    return pipeline.student.path


@pytest.mark.parametrize(("where", "step"), [("_save_checkpoint", 4), ("evaluate", 3), ("collect_step_metrics", 6)])
def test_an_interrupted_run_with_everything_ends_with_the_same_bytes(
    with_everything: AlmConfig,
    unbroken: Path,
    cached: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    step: int,
) -> None:
    """An interruption in `_save_checkpoint` is between an evaluation and its checkpoint."""
    resumed = Pipeline(with_everything, str(shutil.copytree(cached, tmp_path / "resumed")))
    with monkeypatch.context() as patch:
        patch.setattr(AlmTrainer, where, killing(getattr(AlmTrainer, where), step))
        with pytest.raises(Killed):
            resumed.train()
    assert (resumed.student.path / CHECKPOINTS).is_dir()
    resumed.train()
    assert contents(unbroken) == contents(resumed.student.path)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_student_is_kept(pipeline: Run, ema: float | None) -> None:
    train = {"learning_rate": 0.3, "ema": ema, "warmup_steps": 3}
    run = pipeline("best", train, EvaluationConfig(steps=1, samples=0, student="best"))
    bits = run.train().results["held_out_bits_per_byte"]
    trained = evaluations(run).filter(pl.col("step") > 0)
    assert trained["bits_per_byte"].min() < trained["bits_per_byte"][-1]
    assert bits["student_after"] == trained["bits_per_byte"].min()
    scorer = Scorer.of(load_model(str(run.student.path), "float32"), LoadedTokenizer(str(run.student.path)))
    student = run.distillation.held_out.student
    assert student.bits_per_byte(student.score(scorer)) == pytest.approx(bits["student_after"], rel=1e-6)


def test_training_stops_early_and_stays_stopped(pipeline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EvaluationConfig(steps=1, samples=0, patience=2, min_improvement=100.0)
    run = pipeline("early", {"checkpoint_steps": 100}, settings)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "save_student", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run.train()
    assert [folder.name for folder in (run.student.path / CHECKPOINTS).glob("c*")] == ["checkpoint-3"]
    run.train()
    assert evaluations(run)["step"].to_list() == [0, 1, 2, 3]
    assert pl.read_parquet(run.student.path / "metrics.parquet")["step"].to_list() == [1, 2, 3]


def test_the_moving_average_changes_the_student(pipeline: Run) -> None:
    plain, averaged = (pipeline("one", {"ema": ema}) for ema in (None, 0.9))
    assert plain.student.name != averaged.student.name
    assert plain.train().files["model.safetensors"] != averaged.train().files["model.safetensors"]


def test_settings_that_only_monitor_find_the_finished_student(pipeline: Run) -> None:
    run = pipeline("watch", {"steps": 2})
    manifest = run.train()
    for evaluation in (EvaluationConfig(steps=1, max_examples=2, metric="kl"), EvaluationConfig(samples=0)):
        train = {"steps": 2, "keep_checkpoints": 3, "diverged_at": 5.0}
        assert pipeline("watch", train, evaluation).train() == manifest
    names = {pipeline("watch", {"steps": 2}, evaluation).student.name for evaluation in _CHOOSING}
    assert len({run.student.name, *names}) == 1 + len(_CHOOSING)


_CHOOSING = (
    EvaluationConfig(student="best"),
    EvaluationConfig(student="best", steps=7),
    EvaluationConfig(student="best", metric="kl"),
    EvaluationConfig(patience=1),
)


def test_a_nan_loss_stops_the_run_and_names_the_examples(pipeline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run, unbroken = pipeline("wrong"), pipeline("unbroken")
    original, seen = AlmTrainer.compute_loss, list[torch.Tensor]()

    def poisoned(self: AlmTrainer, model: Any, inputs: Any, *rest: Any, **settings: Any) -> torch.Tensor:
        loss = original(self, model, inputs, *rest, **settings)
        if self.state.global_step < 3:
            return loss
        seen.append(inputs["token_ids_BS"])
        return loss * float("nan")

    with monkeypatch.context() as patch:
        patch.setattr(AlmTrainer, "compute_loss", poisoned)
        with pytest.raises(UserError, match="training stopped at step 4: the loss is nan") as raised:
            run.train()
    named = str(raised.value).split("examples are ")[1].split(": check")[0].split(", ")
    texts = texts_of(run)
    tokenizer = AutoTokenizer.from_pretrained(run.config.student.model)
    assert 0 < len(named) < len(texts)
    batch = tokenizer.decode(seen[0].flatten())
    assert {name for name, text in texts.items() if text in batch} == set(named)
    assert [folder.name for folder in (run.student.path / CHECKPOINTS).glob("c*")] == ["checkpoint-2"]
    assert run.train().files == unbroken.train().files


def texts_of(run: Pipeline) -> dict[str, str]:
    shards = len(run.examples.complete_manifest().shards)
    tables = (run.examples.read_shard(shard, ["id", "text"]) for shard in range(shards))
    return {row["id"]: row["text"] for table in tables for row in table.to_pylist()}


def test_the_example_ids_of_a_batch_are_found(pipeline: Run) -> None:
    run = pipeline("ids")
    stream = BatchStream(run.caches, run.config.objective, run.config.train)
    texts, tokenizer = texts_of(run), AutoTokenizer.from_pretrained(run.config.student.model)
    states, batches = [stream.state_dict()], []
    for batch in itertools.islice(iter(stream), 30):  # over the end of an epoch
        batches.append(tokenizer.decode(batch["token_ids_BS"].flatten()))
        states.append(stream.state_dict())
    for first, number in ((0, 1), (7, 2), (28, 1)):
        text = "".join(batches[first : first + number])
        assert all(texts[name] in text for name in stream.example_ids(states[first], number))
        assert len(stream.example_ids(states[first], number)) == sum(
            len(stream.example_ids(states[first + k], 1)) for k in range(number)
        )


def test_weights_that_are_not_finite_are_not_saved(pipeline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = AlmTrainer.collect_step_metrics

    def spoiled(self: AlmTrainer) -> None:
        original(self)
        if self.state.global_step == 4:
            with torch.no_grad():
                next(self.model.parameters())[0, 0] = float("inf")

    monkeypatch.setattr(AlmTrainer, "collect_step_metrics", spoiled)
    run = pipeline("spoiled")
    with pytest.raises(UserError, match="step 4: weights are NaN or infinite"):
        run.train()
    assert [folder.name for folder in (run.student.path / CHECKPOINTS).glob("c*")] == ["checkpoint-2"]


def test_prompts_of_conversations_end_before_the_first_answer(config: AlmConfig, tmp_path: Path) -> None:
    source = config.corpus.source.model_copy(update={"urls": (write_chats(tmp_path / "chats.jsonl"),)})
    corpus = config.corpus.model_copy(update={"source": source, "messages": "messages"})
    run = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path / "data"))
    run.cache()
    model = load_model(config.student.model, "float32")
    tokenizer = run.source.tokenizer
    vocabulary = HeadVocabulary.of(model, tokenizer)
    (sample,) = HeldOutEvaluator(run.distillation.held_out, run.config, vocabulary, tokenizer)(model).samples
    assert sample.prompt.startswith("<|im_start|>user\nHow much is")
    assert sample.prompt.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("losses", "limit", "problem"),
    [
        ([1.0] * 20 + [math.nan], None, "the loss is nan"),
        ([1.0] * 20 + [math.inf], None, "the loss is inf"),
        ([1.0] * 20 + [3.1], 3.0, "more than 3 times 1, the mean of the last 20 steps"),
        ([1.0] * 20 + [3.0], 3.0, ""),
        ([1.0] * 20 + [3.1], None, ""),
        ([1.0] * 5 + [9.0], 3.0, ""),
        ([9.0] * 100 + [1.0] * 100 + [3.1], 3.0, "the last 100 steps"),
    ],
)
def test_a_wrong_step_is_diagnosed(losses: list[float], limit: float | None, problem: str) -> None:
    *before, now = [{"loss": loss} for loss in losses]
    found = diagnose_step(now, before, limit)
    assert problem in found
    assert bool(found) == bool(problem)
    assert "the grad_norm is inf" in diagnose_step({"loss": 1.0, "grad_norm": math.inf}, [], None)


def evaluations_with(scores: list[float], **changes: Any) -> Evaluations:
    """Return evaluations with these results at the steps 0, 10, 20, …"""
    remaining = iter(scores)
    history = Evaluations(
        lambda *_: Evaluation({"bits_per_byte": next(remaining)}, []),  # type: ignore[arg-type]
        EvaluationConfig(**changes),
    )
    for number in range(len(scores)):
        history.run(None, 10 * number)  # type: ignore[arg-type]
    return history


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([1.0, 2.0, 2.5, 3.0]), min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5]),
)
def test_scores_decide_the_best_step_and_when_to_stop(scores: list[float], patience: int, least: float) -> None:
    found = evaluations_with(scores, patience=patience, min_improvement=least, student="best")
    trained = scores[1:]
    best, without = math.inf, 0
    for score in trained:
        without = 0 if best - score > least else without + 1
        best = min(best, score)
    assert found.should_stop == (without >= patience)
    if best == math.inf:
        assert found.best_step is None
    else:
        assert found.best_step == 10 * (1 + trained.index(best))


def test_evaluations_are_restored_from_a_checkpoint(tmp_path: Path) -> None:
    found, again = evaluations_with([3.0, 2.0, 2.5]), evaluations_with([])
    found.before = {"bits_per_byte": 3.5}
    found.save(tmp_path)
    again.load(tmp_path)
    assert again.before == found.before
    assert str(again.rows) == str(found.rows)


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_metric_that_is_not_finite_stops_the_training(value: float, place: int, tmp_path: Path) -> None:
    """It is neither the best step nor one without improvement, in an older version's checkpoint too."""
    scores = [3.0, 2.0, 2.5]
    scores[place] = value
    with pytest.raises(
        UserError, match=f"step {10 * place}, held out: bits_per_byte is {value}: .*train.learning_rate"
    ):
        evaluations_with(scores, patience=1, student="best")
    stored = evaluations_with([3.0, 2.0, 2.5])
    stored.rows[place]["bits_per_byte"] = value
    stored.save(tmp_path)
    with pytest.raises(UserError, match=f"step {10 * place}, held out"):
        evaluations_with([]).load(tmp_path)


COLUMNS = [name for name in METRICS.names if name != "step"]


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_of_a_step_is_looked_at(column: str, value: float) -> None:
    right = dict.fromkeys(COLUMNS, 1.0)
    assert diagnose_step(right, [], None) == ""
    assert f"{column} is {value}" in diagnose_step({**right, column: value}, [], None)


@pytest.mark.bad_input
def test_a_term_is_named_rather_than_what_follows_from_it() -> None:
    step = {"loss": math.nan, "grad_norm": math.nan, "alm": math.nan, "alm_weight": 1.0}
    assert "the term alm is nan (objective.divergence" in diagnose_step(step, [], None)
    assert "score.dtype" in diagnose_step({"loss": math.nan, "latents": math.inf}, [], None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 30), st.integers(1, 10))
def test_all_groups_hold_every_example_once(lengths: list[int], batch_tokens: int, row_tokens: int) -> None:
    array = np.array(lengths, np.int64)
    groups = plan_batches(array, batch_tokens, row_tokens)
    assert sorted(itertools.chain(*(group.examples.tolist() for group in groups))) == list(range(len(lengths)))
    for group in groups:
        filled = np.bincount(group.rows, array[group.examples])
        assert len(group.examples)
        assert (filled > 0).all()
        assert (filled <= row_tokens).all() or len(group.examples) == 1
        assert len(filled) <= max(1, batch_tokens // row_tokens)
