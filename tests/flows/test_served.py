"""The flow scores by a server: one that it starts, as the deployment `serve-score` does, and one that is there."""

import sys
from pathlib import Path

import psutil
import pytest
import yaml

from alm_pipeline.config import AlmConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from flows import tasks
from flows.alm import alm
from tests.alm_pipeline.scoring.served import serve
from tests.alm_pipeline.scoring.served.small_server import SmallServer, running

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]
ROOT = Path(__file__).parents[2]
BY_VLLM = "tokens by vllm 0.32.0, float32, quantization none"


def prepared(config: AlmConfig, root: Path) -> Pipeline:
    config = config.model_copy(update={"score": config.score.model_copy(update={"dtype": "float32"})})
    pipeline = Pipeline(config, str(root))
    pipeline._prepare()
    return pipeline


def deployment_parameters() -> dict[str, object]:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    (serving,) = (each for each in deployments if each["name"] == "serve-score")
    assert (serving["entrypoint"], serving["work_pool"]["name"]) == ("flows.alm.alm", "gpu")
    return dict(serving["parameters"])


def test_the_deployment_starts_a_server_and_ends_it(config: AlmConfig, tmp_path: Path) -> None:
    pipeline, parameters = prepared(config, tmp_path), deployment_parameters()
    command = [sys.executable, serve.__file__]
    settings = {**parameters.pop("settings"), "score.served.command": command}  # type: ignore[dict-item]
    result = alm(config=pipeline.config, storage=str(tmp_path), settings=settings, **parameters)
    assert set(result["seconds"]) == {"score"}
    counts = pipeline.scores.complete_manifest().counts
    assert counts[BY_VLLM] == counts["tokens"] > 0
    assert [child for child in psutil.Process().children(recursive=True) if serve.__file__ in child.cmdline()] == []


def test_servers_that_are_there_take_no_slot_of_this_machine_s_gpus(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "gpu_slots", None)  # would fail if it were called
    pipeline = prepared(config, tmp_path)
    with running(SmallServer(ModelReference(config.teacher), tmp_path)) as url:
        settings = {"score.engine": "http", "score.served.urls": [url]}
        alm(config=pipeline.config, storage=str(tmp_path), only="score", settings=settings)
    counts = pipeline.scores.complete_manifest().counts
    assert counts[BY_VLLM] == counts["tokens"]
