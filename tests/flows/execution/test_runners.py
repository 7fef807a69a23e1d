"""Threads, processes, Dask and Ray write the same bytes; and what each of them needs."""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import get_args

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.runtime import threads
from alm_pipeline.runtime.threads import threads_at_once
from flows.alm import alm
from flows.execution.runners import RUNNERS, Runner, task_runner
from storage.errors import UserError

MODULES = {"dask": "prefect_dask", "ray": "prefect_ray"}


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_server")
def test_tasks_on_threads_share_the_cores(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    seen: list[int] = []

    def count() -> int:
        seen.append(threads_at_once())
        return 1

    monkeypatch.setattr(threads, "threads_at_once", count)
    alm(config=config, storage=str(tmp_path), until="scores", runner="threads", workers=2)
    plan, stages = seen[:2], seen[2:]  # the plan has all cores for its sample, on both sides
    assert set(plan) == {8}
    assert set(stages) == {4}
    assert threads_at_once() == 8


@pytest.fixture(scope="module")
def small(config: AlmConfig) -> AlmConfig:
    """About ten shards."""
    return config.model_copy(update={"corpus": config.corpus.model_copy(update={"shard_bytes": 1024})})


@pytest.fixture(scope="module")
def unbroken(small: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that the library writes without Prefect and without groups."""
    root = tmp_path_factory.mktemp("unbroken")
    Pipeline(small, str(root)).cache()
    return files(root)


def files(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("runner", get_args(Runner))
def test_the_same_bytes_on_every_runner(
    runner: Runner, small: AlmConfig, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    if runner in MODULES and not importlib.util.find_spec(MODULES[runner]):
        pytest.skip(f"{MODULES[runner]} is not installed: pip install 'alm-pipeline[{runner}]'")
    result = alm(config=small, storage=str(tmp_path), until="scores", runner=runner, workers=2, group_bytes=2500)
    assert result["examples"] == 80
    assert all(result["seconds"][stage] > 0 for stage in ("tokenize teacher", "tokenize student", "align"))
    written = files(tmp_path)
    assert len(written) > 40
    assert {name for name in written.keys() | unbroken if written.get(name) != unbroken.get(name)} == set()
    # other runners' own lines
    logging.getLogger("distributed").handlers.clear()


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_server")
def test_a_users_error_is_raised_from_a_process_and_not_retried(
    config: AlmConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process prints how each of its tasks ends; another try would be announced there."""
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.shard()
    damaged = Path(pipeline.examples.shard_url(0))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-00000\.parquet: is .* bytes long"):
        alm(config=config, storage=str(tmp_path), until="scores", runner="processes", workers=1)
    printed = capfd.readouterr().err.splitlines()
    assert [line for line in printed if "Finished in state Failed(" in line]
    assert [line for line in printed if "Retry 1/" in line or "AwaitingRetry" in line] == []


def test_every_runner_is_registered() -> None:
    assert set(RUNNERS) == set(get_args(Runner))


@pytest.mark.parametrize("runner", ["processes", "dask", "ray"])
def test_processes_need_a_server(runner: Runner) -> None:
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(UserError, match="set PREFECT_API_URL"):
        task_runner(runner, 2, None)


def test_an_address_needs_a_runner_with_a_cluster() -> None:
    with pytest.raises(UserError, match="set `runner` to dask or ray"):
        task_runner("threads", 2, "tcp://127.0.0.1:8786")


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_missing_extra_is_named(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULES[runner], None)
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        pytest.raises(UserError, match=rf"pip install 'alm-pipeline\[{runner}\]'"),
    ):
        task_runner(runner, 2, None)
