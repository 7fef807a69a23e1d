"""A real server and real workers on this machine: deployments, a GPU pool, kills, cancellations, restarts."""

from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.states import Cancelling

from alm_pipeline.config import AlmConfig, CorpusConfig
from alm_pipeline.pipeline import Pipeline
from tests.flows.loopback import Loopback, wait_for

pytestmark = [pytest.mark.flow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def many(config: AlmConfig) -> AlmConfig:
    """About twenty shards, and training that takes a while."""
    corpus = config.corpus.model_copy(update={"shard_bytes": 1024, "max_bytes": 100})
    train = config.train.model_copy(update={"steps": 12, "checkpoint_steps": 3})
    return config.model_copy(update={"corpus": corpus, "train": train})


@pytest.fixture(scope="module")
def unbroken(many: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("unbroken")
    Pipeline(many, str(root)).run()
    return files(root)


def files(root: Path) -> dict[str, bytes]:
    # the times of training differ between runs
    names = [file for file in root.rglob("*") if file.is_file() and file.name[0] != "." and file.parent.name != "runs"]
    return {str(file.relative_to(root)): file.read_bytes() for file in names}


def differing(root: Path, unbroken: dict[str, bytes]) -> set[str]:
    written = files(root)
    return {name for name in written.keys() | unbroken if written.get(name) != unbroken.get(name)}


def parameters(config: AlmConfig, root: Path) -> dict[str, Any]:
    return {"config": config.model_dump(mode="json"), "storage": str(root), "group_bytes": 3000}


def test_everything_is_deployed_with_descriptions(loopback: Loopback) -> None:
    with loopback.client() as client:
        deployments = {deployment.name: deployment for deployment in client.read_deployments()}
    assert set(deployments) == {
        *("distill", "cache", "score", "train", "transfer", "hypernet", "ensemble", "evaluate", "audit", "verify")
    }
    assert all(
        deployment.description and deployment.tags and deployment.work_pool_name in ("alm", "gpu")
        for deployment in deployments.values()
    )
    form = deployments["distill"].parameter_openapi_schema
    assert "peak learning rate" in str(form["properties"]["learning_rate"])
    nested = form["definitions"]["CorpusConfig"]["properties"]["shard_bytes"]["description"]
    assert nested == CorpusConfig.model_fields["shard_bytes"].description


def test_a_misspelt_parameter_is_refused_with_its_name(loopback: Loopback) -> None:
    refused = loopback.cli("deployment", "run", "alm/distill", "-p", "stepz=3")
    assert refused.returncode == 1
    assert "stepz" in refused.stdout + refused.stderr


def test_scoring_and_training_run_on_the_gpu_pool(
    loopback: Loopback, many: AlmConfig, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    for pool in ("alm", "gpu"):
        loopback.worker(pool)
    run = loopback.run("alm/distill", **parameters(many, tmp_path), gpu_pool="gpu")
    state = loopback.finished(run)
    assert state.is_completed(), f"{state.message}\n{loopback.logs()}"
    on_gpu = [run for run in loopback.runs() if run.work_pool_name == "gpu"]
    assert {run.parameters["only"] for run in on_gpu} == {"score", "train"}
    assert all(run.state.is_completed() and run.parent_task_run_id for run in on_gpu)
    assert differing(tmp_path, unbroken) == set()


def test_a_cancellation_reaches_both_the_run_and_its_run_on_the_pool(
    loopback: Loopback, many: AlmConfig, tmp_path: Path
) -> None:
    Pipeline(many, str(tmp_path)).cache()
    loopback.worker("alm")  # and no worker on the pool
    run = loopback.run("alm/distill", **parameters(many, tmp_path), gpu_pool="gpu")
    child = _child_of(loopback, run)
    assert loopback.cli("flow-run", "cancel", str(child.id)).returncode == 0
    assert loopback.finished(run).is_cancelled(), loopback.logs()

    run = loopback.run("alm/distill", **parameters(many, tmp_path), gpu_pool="gpu")
    child = _child_of(loopback, run)
    assert loopback.cli("flow-run", "cancel", str(run)).returncode == 0
    assert loopback.finished(run).is_cancelled()
    assert loopback.finished(child.id).is_cancelled()


def _child_of(loopback: Loopback, run: Any) -> Any:
    children: list[Any] = []

    def there() -> bool:
        scheduled = [run for run in loopback.runs() if run.work_pool_name == "gpu" and not run.state.is_final()]
        children[:] = scheduled
        return bool(scheduled) or loopback.state(run).is_final()

    wait_for("a run on the pool", there)
    assert children, f"{loopback.state(run)}\n{loopback.logs()}"
    return children[0]


@pytest.mark.long
def test_killed_and_cancelled_runs_are_run_again(
    loopback: Loopback, many: AlmConfig, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Killed with -9 together with the worker while it tokenizes and while it scores; canceled while it trains."""
    # long enough for a worker to notice; other tests check that a resumed student is the same to the bit
    train = many.train.model_copy(update={"steps": 200, "accumulation": 8, "checkpoint_steps": 10})
    many = many.model_copy(update={"train": train})
    caches = tmp_path_factory.mktemp("caches")
    Pipeline(many, str(caches)).cache()
    for stage in ("tokens/*/shard-*.json", "teacher_scores/*/shard-*.json"):
        worker = loopback.worker("alm")
        run = loopback.run("alm/distill", **parameters(many, tmp_path))
        wait_for(stage, lambda stage=stage: any(tmp_path.glob(stage)), between=0.005)
        loopback.kill(worker)
        loopback.forget(run)
    worker = loopback.worker("alm")
    run = loopback.run("alm/distill", **parameters(many, tmp_path))
    wait_for("a checkpoint", lambda: any(tmp_path.glob("students/*/checkpoints/checkpoint-*")), between=0.005)
    training = psutil.Process(worker.pid).children(recursive=True)
    with loopback.client() as client:
        client.set_flow_run_state(run, Cancelling())
    _, alive = psutil.wait_procs(training, timeout=60)
    assert alive == []
    assert loopback.finished(run).is_cancelled()
    assert any(tmp_path.glob("students/*/checkpoints/checkpoint-*"))
    run = loopback.run("alm/distill", **parameters(many, tmp_path))
    state = loopback.finished(run)
    assert state.is_completed(), f"{state.message}\n{loopback.logs()}"
    assert {name for name in differing(tmp_path, files(caches)) if not name.startswith("students/")} == set()
    assert any(tmp_path.glob("students/*/manifest.json"))


@pytest.mark.long
def test_two_runs_at_once_and_a_server_that_is_restarted(
    loopback: Loopback, many: AlmConfig, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    loopback.worker("alm")
    runs = [loopback.run(name, **parameters(many, tmp_path)) for name in ("alm/distill", "alm/cache")]
    wait_for("the first tokens", lambda: any(tmp_path.glob("tokens/*/shard-*.json")), between=0.005)
    loopback.restart()
    for run in runs:
        state = loopback.finished(run)
        assert state.is_completed(), f"{state.message}\n{loopback.logs()}"
    assert differing(tmp_path, unbroken) == set()
