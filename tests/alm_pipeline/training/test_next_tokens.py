"""The term `bpm` in a run: its batches, its training, and what is written of it."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from alm_pipeline.config import AlmConfig, ObjectiveConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.examples import read_examples
from alm_pipeline.training.loop import train as training
from alm_pipeline.training.model.terms import micro_batch_losses
from storage.columns import list_rows
from storage.errors import UserError
from tests.alm_pipeline.training.killing import Killed, kill_at
from tests.alm_pipeline.training.loop.test_train import contents

OBJECTIVE = ObjectiveConfig(terms={"alm": 1.0, "bpm": 0.5}, temperature=5.0)
TOP = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def pipeline_of(config: AlmConfig, root: Path, top_k: int = TOP, **train: float) -> Pipeline:
    score, training = config.score.model_copy(update={"top_k": top_k}), config.train.model_copy(update=train)
    made = Pipeline(config.model_copy(update={"score": score, "objective": OBJECTIVE, "train": training}), str(root))
    made.cache()
    return made


@pytest.mark.parametrize("debias", ["end", "both"])
def test_the_batches_hold_the_targets_of_their_examples(config: AlmConfig, store: Path, debias: str) -> None:
    pipeline = pipeline_of(config, store, row_tokens=90)
    objective, prefixes = OBJECTIVE.model_copy(update={"debias": debias}), pipeline.distillation.prefixes
    assert prefixes is not None
    stream = BatchStream(pipeline.caches, objective, pipeline.config.train, prefixes=prefixes)
    shards = range(len(pipeline.scores.complete_manifest().shards))
    tables = [read_examples(pipeline.caches, k, "train", objective, prefixes=prefixes) for k in shards]
    targets = {}
    for table in tables:
        columns = ("token_ids", "target_tokens", "target_sizes", "target_ids", "target_probabilities")
        for ids, tokens, sizes, listed, probabilities in zip(
            *(list_rows(table[name]) for name in columns), strict=True
        ):
            lists = (np.split(values, np.cumsum(sizes, dtype=np.int64))[:-1] for values in (listed, probabilities))
            parts = zip(tokens.tolist(), *lists, strict=True)
            targets[ids.tobytes()] = {token: (part.tolist(), values.tolist()) for token, part, values in parts}
    assert sum(map(len, targets.values())) > 100
    assert all(sum(values) <= 1 + 1e-6 for of in targets.values() for _, values in of.values())
    for batch in itertools.islice(stream, 4):
        ids, positions = (batch[name].flatten() for name in ("token_ids_BS", "position_ids_BS"))
        listed, values = batch["target_ids_NL"], batch["target_probabilities_NL"]
        starts = [k for k in range(len(ids)) if positions[k] == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            expected = targets.get(ids[start:end].numpy().astype(np.int32).tobytes(), {})
            got = {
                k + 1 - start: (listed[k][listed[k] >= 0].tolist(), values[k][listed[k] >= 0].tolist())
                for k in range(start, end)
                if listed[k, 0] >= 0
            }
            assert got == expected
        assert LossCounts.of(batch).targets == (listed[:, 0] >= 0).sum() > 0


def test_the_losses_of_batches_add_up_and_ask_the_student_alone(config: AlmConfig, store: Path) -> None:
    """Against a dense log-softmax of the student's logits."""
    pipeline = pipeline_of(config, store, row_tokens=90)
    model = load_model(config.student.model, "float32")
    vocabulary = HeadVocabulary.of(model, pipeline.student_tokenizer)
    stream = BatchStream(pipeline.caches, OBJECTIVE, pipeline.config.train, prefixes=pipeline.distillation.prefixes)
    batches = list(itertools.islice(stream, 2))
    counts, total = LossCounts.of(*batches), 0.0
    parts = [micro_batch_losses(model, batch, vocabulary, OBJECTIVE, counts).terms["bpm"] for batch in batches]
    for batch in batches:
        with torch.no_grad():
            logits = model(input_ids=batch["token_ids_BS"], position_ids=batch["position_ids_BS"]).logits
        for row, ids, values in zip(
            logits.flatten(0, 1).double(), batch["target_ids_NL"], batch["target_probabilities_NL"], strict=True
        ):
            if (chosen := ids[ids >= 0]).numel():
                scores = row if not OBJECTIVE.given_boundary else row[vocabulary.boundary_ids_K]
                student = torch.log_softmax(row, 0)[chosen] - (scores.logsumexp(0) - row.logsumexp(0))
                target = torch.cat([values[ids >= 0].double(), (1 - values.double().sum()).clamp(min=0)[None]])
                mine = torch.cat([student.exp(), (1 - student.exp().sum())[None]])
                total += float(torch.where(target > 1e-12, target * (target / mine).log(), 0).sum())
    assert torch.stack(parts).sum().item() == pytest.approx(total / float(counts.targets), rel=1e-4)


def test_a_student_learns_the_teachers_next_tokens(config: AlmConfig, store: Path) -> None:
    learned = pipeline_of(config, store, steps=30, learning_rate=3e-3)
    learned.train()
    metrics = pl.read_parquet(learned.student.path / "metrics.parquet")
    assert metrics["bpm"].tail(5).mean() < 0.8 * metrics["bpm"].head(5).mean()
    np.testing.assert_allclose(metrics["loss"], metrics["alm"] + 0.5 * metrics["bpm"], rtol=1e-5)
    assert metrics["bpm_weight"].unique().to_list() == [0.5]
    evaluations = pl.read_parquet(learned.student.path / "evaluations.parquet")
    assert evaluations["bpm"][-1] < evaluations["bpm"][0]


def test_an_interrupted_run_ends_with_the_same_bytes(
    config: AlmConfig, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, killed = pipeline_of(config, store), pipeline_of(config, tmp_path)
    unbroken.train()
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingProgress, "on_step_end", kill_at(4))
        with pytest.raises(Killed):
            killed.train()
    killed.train()
    assert contents(unbroken.student.path) == contents(killed.student.path)


@pytest.mark.bad_input
def test_scores_without_the_likeliest_tokens_are_refused(config: AlmConfig, store: Path) -> None:
    pipeline = pipeline_of(config, store, top_k=0)
    with pytest.raises(UserError, match=r"score.top_k: is 0, and the term bpm of objective.terms .* set it to 16"):
        _ = pipeline.distillation.prefixes
