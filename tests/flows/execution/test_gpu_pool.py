"""How the flow handles runs on a pool, with a pool whose answers the test sets."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Crashed, Running

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from flows.alm import alm
from flows.execution import gpu_pool
from flows.execution.gpu_pool import GpuPool, PoolRunFailed
from storage.errors import UserError

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


class FakePool:
    """Runs a deployment's stage at once in this process, and ends the run in a set state."""

    def __init__(self, config: AlmConfig, root: Path) -> None:
        self.pipeline, self.ending = Pipeline(config, str(root)), Completed()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.cancelled: list[UUID] = []

    def run_deployment(self, name: str, parameters: dict[str, Any], timeout: int) -> FlowRun:
        self.requests.append((name, parameters))
        if self.ending.is_completed():
            self.pipeline.score(parameters["shards"]) if parameters["only"] == "score" else self.pipeline.train()
        return FlowRun(flow_id=uuid4(), name="busy-bee")

    def wait_until_final(self, id_: UUID) -> FlowRun:
        if self.ending.is_running():
            raise KeyboardInterrupt
        return FlowRun(id=id_, flow_id=uuid4(), name="busy-bee", state=self.ending, total_run_time=timedelta(seconds=7))


@pytest.fixture
def fake_pool(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePool:
    fake = FakePool(config, tmp_path)
    monkeypatch.setattr(gpu_pool, "run_deployment", fake.run_deployment)
    monkeypatch.setattr(GpuPool, "_wait_until_final", fake.wait_until_final)
    monkeypatch.setattr(GpuPool, "check", lambda *_: None)
    monkeypatch.setattr(gpu_pool, "_cancel", fake.cancelled.append)
    return fake


def run(config: AlmConfig, root: Path, **parameters: Any) -> Any:
    return alm(config=config, storage=str(root), gpu_pool="gpu", group_bytes=1024, **parameters)


def test_groups_are_scored_and_the_student_is_trained_on_the_pool(
    config: AlmConfig, tmp_path: Path, fake_pool: FakePool
) -> None:
    result = run(config, tmp_path)
    *scored, (name, parameters) = fake_pool.requests
    assert {name for name, _ in scored} == {"alm/score"}
    shards = sorted(shard for _, request in scored for shard in request["shards"])
    assert shards == list(range(len(fake_pool.pipeline.examples.complete_manifest().shards)))
    assert (name, parameters["only"], parameters["storage"]) == ("alm/train", "train", str(tmp_path))
    assert AlmConfig.model_validate(parameters["config"]) == config
    assert result["seconds"]["train"] == 7.0
    assert set(result["bits_per_byte"]) == {"teacher", "student_before", "student_after"}
    fake_pool.requests.clear()
    run(config, tmp_path, until="scores")
    assert fake_pool.requests == []


def test_a_failure_is_passed_on(config: AlmConfig, tmp_path: Path, fake_pool: FakePool) -> None:
    fake_pool.ending = Crashed(message="out of memory")
    with pytest.raises(PoolRunFailed, match=r"alm/score: run busy-bee .* on the work pool gpu: out of memory"):
        run(config, tmp_path)


def test_a_cancellation_is_passed_on(config: AlmConfig, tmp_path: Path, fake_pool: FakePool) -> None:
    fake_pool.ending = Cancelled(message="by hand")
    state = run(config, tmp_path, return_state=True)
    assert state.is_cancelled()
    assert "by hand" in state.message


def test_an_interrupted_flow_cancels_its_runs(config: AlmConfig, tmp_path: Path, fake_pool: FakePool) -> None:
    fake_pool.ending = Running()
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    assert len(fake_pool.cancelled) == 1


def test_a_missing_deployment_is_named() -> None:
    with (
        GpuPool("gpu", 1) as gpu_pool,
        pytest.raises(UserError, match="gpu_pool gpu: there is no deployment alm/score"),
    ):
        gpu_pool.check("alm/score")
