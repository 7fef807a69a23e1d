"""Trackers: what TensorBoard receives, that a resumed run is one run, and that a missing package is named."""

import os
from pathlib import Path
from typing import get_args

import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from alm_pipeline.config import AlmConfig, FilesSource, LogConfig, Tracker
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.loop import installed
from alm_pipeline.training.loop import train as training
from alm_pipeline.training.loop.trackers import RunLog, _environment, hyperparameters
from storage.errors import UserError
from tests.alm_pipeline.training.killing import Killed, kill_at
from tests.test_package import EXTRAS


def test_tensorboard_receives_every_step_once_also_after_a_kill(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(update={"log": LogConfig(report_to=("tensorboard",))})
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingProgress, "on_step_end", kill_at(4))  # step 3 is logged, and checkpoint 2 saved
        with pytest.raises(Killed):
            Pipeline(config, str(tmp_path)).run()
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.run()
    runs = pipeline.student.path / "runs"
    assert len(list(runs.glob("events.out.tfevents.*"))) == 2
    seen = EventAccumulator(str(runs)).Reload()
    metrics = pl.read_parquet(pipeline.student.path / "metrics.parquet")
    for column in ("loss", "kl", "learning_rate", "grad_norm"):
        scalars = seen.Scalars(f"train/{column}")
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4, 5, 6]
        assert [scalar.value for scalar in scalars] == pytest.approx(metrics[column].to_list(), rel=1e-5)
    text = b"".join(seen.Tensors("args/text_summary")[0].tensor_proto.string_val).decode()
    assert '"train.steps": 6' in text
    assert '"objective.gamma": 0.1' in text
    assert "checkpoints" not in text  # the trainer's own arguments name folders of this machine
    speed = pl.read_parquet(runs / "speed.parquet")
    assert speed["step"].to_list() == [1, 2, 3, 4, 5, 6]
    assert (speed["tokens_per_second"] * speed["seconds"]).to_list() == pytest.approx(speed["tokens"].to_list())
    assert speed["memory_bytes"].min() > 2**20


def test_transformers_knows_every_tracker_and_each_has_an_extra() -> None:
    names = get_args(Tracker)
    assert len(get_reporting_integration_callbacks(list(names))) == len(names)
    assert set(names) <= set(EXTRAS)


def test_a_chosen_name_names_the_run_and_never_two_students(tmp_path: Path) -> None:
    """MLflow and trackio continue the run that has the name."""
    names = [RunLog(LogConfig(), f"student-{k}", tmp_path, {}, "mine").name for k in range(2)]
    assert names == ["mine 0", "mine 1"]
    assert RunLog(LogConfig(), "student-0", tmp_path, {}).name == "student-0"
    assert RunLog(LogConfig(run_name="own"), "student-0", tmp_path, {}, "mine").name == "own"


def test_a_tracker_that_is_not_installed_is_named(config: AlmConfig, tmp_path: Path) -> None:
    def none_installed(_: str) -> None:
        return None

    run = RunLog(LogConfig(report_to=("wandb",)), "student-0", tmp_path, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installed, "find_spec", none_installed)
        with pytest.raises(UserError, match=r"wandb is not installed here: pip install 'alm-pipeline\[wandb\]'"):
            run.check()
        RunLog(LogConfig(), "student-0", tmp_path, {}).check()


def test_hyperparameters_are_flat_and_without_secrets(config: AlmConfig) -> None:
    source = FilesSource(urls=("https://me:word@host/texts.jsonl?sig=abc&part=1",))
    config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"source": source})})
    settings = hyperparameters(config)
    assert settings["corpus.source.urls"] == ["https://***@host/texts.jsonl?sig=***&part=***"]
    assert settings["objective.terms.alm"] == 1.0
    assert settings["train.learning_rate"] == 1e-3
    # a resumed run may change settings that do not affect the student, and trackers refuse changes
    assert "train.checkpoint_steps" not in settings


def test_trackers_do_not_change_the_students_identity(config: AlmConfig, tmp_path: Path) -> None:
    logged = config.model_copy(update={"log": LogConfig(report_to=("tensorboard",), run_name="mine")})
    first, second = (Pipeline(setting, str(tmp_path)) for setting in (config, logged))
    first.cache()
    assert first.student.name == second.student.name


def test_variables_set_by_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    with _environment({"WANDB_PROJECT": "ours", "WANDB_RUN_ID": "0"}):
        assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_RUN_ID"]) == ("theirs", "0")
    assert os.environ["WANDB_PROJECT"] == "theirs"
    assert "WANDB_RUN_ID" not in os.environ
