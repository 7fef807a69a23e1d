"""Scoring in a process per device: the same bytes, and one error for all of them."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.config import ScoreConfig
from alm_pipeline.scoring import processes, stage
from alm_pipeline.scoring.processes import shared_out
from storage.dataset import Dataset
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.scoring.stages import contents, run, tokens_of

SHARDS = [[f"{text} {k}" for text in tiny.TEXTS] for k in range(4)]


@pytest.fixture
def tokens(tmp_path: Path, gemma_folder: str) -> Dataset:
    return tokens_of(SHARDS, tmp_path, gemma_folder)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 8), st.data())
def test_every_shard_is_shared_out_once_and_evenly(sizes: list[int], count: int, data: st.DataObject) -> None:
    shards = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True))
    parts = shared_out(dict(enumerate(sizes)), shards, count)
    assert len(parts) == count
    assert sorted(shard for part in parts for shard in part) == sorted(shards)
    totals = [sum(sizes[shard] for shard in part) for part in parts]
    # no process has more than the average and one shard
    assert max(totals) <= sum(totals) / count + max([sizes[shard] for shard in shards], default=0)


def test_processes_are_for_several_gpus() -> None:
    config = ScoreConfig(devices=("cuda:0", "cuda:1", "cuda:2"))
    assert stage._process_devices(config, 2) == ["cuda:0", "cuda:1"]
    assert stage._process_devices(config, 1) == []
    assert stage._process_devices(ScoreConfig(device_map="auto"), 9) == []
    assert stage._need_processes(["cuda:0", "cuda:1"])
    for devices in (["cuda:0"], [], ["cpu", "cpu"], ["cpu"], ["cuda:0", "cpu"]):
        assert not stage._need_processes(devices)


def test_processes_write_the_same_bytes(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(tokens, tmp_path / "one", gemma_folder)
    monkeypatch.setattr(stage, "_need_processes", lambda devices: True)
    several = run(tokens, tmp_path / "several", gemma_folder, devices=["cpu", "cpu:0"])
    assert contents(several) == contents(one)


@pytest.mark.long
def test_the_error_of_a_process_is_the_runs(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_need_processes", lambda devices: True)
    with pytest.raises(UserError, match=r"cuda:5: this machine has no such device"):
        run(tokens, tmp_path / "failing", gemma_folder, devices=["cpu", "cuda:5"])
    assert not [child for child in psutil.Process().children() if "alm_pipeline.scoring.process" in child.cmdline()]


@pytest.mark.long
def test_a_killed_process_ends_all_and_the_next_run_goes_on(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = contents(run(tokens, tmp_path / "whole", gemma_folder))
    monkeypatch.setattr(stage, "_need_processes", lambda devices: True)

    def kill_one() -> None:
        while not (children := scoring_children()):
            time.sleep(0.02)
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(UserError, match=r"ended with status -9 \(killed: out of memory\?\): run it again"):
        run(tokens, tmp_path / "broken", gemma_folder, devices=["cpu", "cpu:0"])
    killer.join()
    assert not scoring_children()
    assert contents(run(tokens, tmp_path / "broken", gemma_folder)) == unbroken


def scoring_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "alm_pipeline.scoring.process" in child.cmdline()]


def test_an_interrupt_leaves_no_process(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_need_processes", lambda devices: True)

    class Interrupted:
        """A queue whose first reading is interrupted, as by Ctrl-C."""

        def put(self, message: object) -> None:
            pass

        def get(self, timeout: float) -> object:
            raise KeyboardInterrupt

    monkeypatch.setattr(processes, "Queue", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tokens, tmp_path / "broken", gemma_folder, devices=["cpu", "cpu:0"])
    assert not scoring_children()
