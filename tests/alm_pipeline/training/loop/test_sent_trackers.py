"""W&B, trackio and MLflow on this machine, if installed: each has one run, also after a kill."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from alm_pipeline.config import AlmConfig, LogConfig
from tests.alm_pipeline.training.loop.test_train import trained


def interrupted(config: AlmConfig, root: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train a student that is interrupted after step 3 is logged, and resumed from step 2 in the same process."""
    log = config.log.model_copy(update={"report_to": (tracker,)})
    return trained(config.model_copy(update={"log": log}), root, 4, monkeypatch)


def losses(student: Path) -> list[float]:
    return pl.read_parquet(student / "metrics.parquet")["loss"].to_list()


def test_wandb_has_one_run(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    student = interrupted(config, tmp_path, "wandb", monkeypatch)
    assert wandb.run is None
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    run = student.name.rsplit("-", 1)[-1]
    # W&B merges the two by their id when they are uploaded
    assert first.name.endswith(run)
    assert second.name.endswith(run)


def test_mlflow_has_one_run(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    student = interrupted(config, tmp_path, "mlflow", monkeypatch)
    assert mlflow.active_run() is None
    (run,) = mlflow.search_runs(experiment_names=["alm-pipeline"], output_format="list")
    assert (run.info.run_name, run.info.status) == (student.name, "FINISHED")
    assert run.data.params["train.steps"] == "6"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    logged = {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.timestamp)}
    assert list(logged.values()) == pytest.approx(losses(student))


def test_trackio_has_one_run(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("trackio.utils")  # it reads its folder once per process, so the project name is unique
    log = LogConfig(project=f"alm-pipeline-{os.getpid()}")
    student = interrupted(config.model_copy(update={"log": log}), tmp_path, "trackio", monkeypatch)
    file = Path(utils.TRACKIO_DIR, f"{log.project}.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        logged = [
            json.loads(metrics).get("train/loss") for (metrics,) in database.execute("select metrics from metrics")
        ]
        names = [name for (name,) in database.execute("select distinct run_name from metrics")]
    file.unlink()
    file.with_suffix(".lock").unlink(missing_ok=True)
    assert names == [student.name]
    assert sorted({loss for loss in logged if loss is not None}) == pytest.approx(sorted(losses(student)))
