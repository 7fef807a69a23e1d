"""The pipeline starts the training processes, reports how they ended, and ends them when it ends itself."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import psutil
import pytest

from alm_pipeline.config import AlmConfig, TrainConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.parallel import launch
from alm_pipeline.training.parallel.launch import _child_processes, _error
from storage.errors import UserError


def pipeline_of(config: AlmConfig, root: Path, **changes: object) -> Pipeline:
    train = TrainConfig.model_validate(config.train.model_dump() | {"processes": 2, "accumulation": 2} | changes)
    pipeline = Pipeline(config.model_copy(update={"train": train}), str(root))
    pipeline.cache()
    return pipeline


def kill_second_process(checkpoint: Path) -> None:
    """Kill rank 1 as soon as the checkpoint exists."""
    while not (checkpoint / "trainer_state.json").exists():
        time.sleep(0.02)
    for child in psutil.Process().children(recursive=True):
        if child.environ().get("RANK") == "1":
            child.send_signal(signal.SIGKILL)


def test_a_killed_process_ends_the_others_and_the_next_run_resumes(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = pipeline_of(config, tmp_path, steps=60, checkpoint_steps=10)
    checkpoint = pipeline.student.path / "checkpoints" / "checkpoint-10"
    before = psutil.Process().children(recursive=True)  # other tests' servers
    killer = threading.Thread(target=kill_second_process, args=(checkpoint,))
    killer.start()
    with pytest.raises(
        UserError, match=r"training process 1 was killed \(SIGKILL\), which ended the others: out of memory"
    ):
        pipeline.train()
    killer.join()
    assert set(psutil.Process().children(recursive=True)) <= set(before)
    (checkpoint_left,) = (pipeline.student.path / "checkpoints").glob("checkpoint-*")
    assert pipeline.student.manifest() is None
    manifest = pipeline.train()
    assert manifest == pipeline.student.manifest()
    assert "student_after" in manifest.results["held_out_bits_per_byte"]
    assert not checkpoint_left.exists()
    assert pl.read_parquet(pipeline.student.path / "metrics.parquet")["step"].to_list() == [*range(1, 61)]


def test_a_user_error_in_a_process_is_raised_by_the_pipeline(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = pipeline_of(config, tmp_path, freeze=("nothing.like.this",))
    with pytest.raises(UserError, match=r"^train.freeze: nothing.like.this matches no parameter"):
        pipeline.train()


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[1] == "parent":
    subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def test_an_interrupted_parent_ends_children_that_ignore_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_GRACE_S", 0.2)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    command = (sys.executable, str(tmp_path / "stubborn.py"), "parent")
    family: list[psutil.Process] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(command, family)
    assert len(family) == 2
    assert not psutil.wait_procs(family, timeout=30)[1]


def interrupted(command: tuple[str, ...], family: list[psutil.Process]) -> None:
    """Raise KeyboardInterrupt once the child and its own child, collected in `family`, are ready."""
    with _child_processes(command, [{}]) as ((child,), lines):
        while list(lines) != ["ready", "ready"]:
            time.sleep(0.01)
        process = psutil.Process(child.pid)
        family += [process, *process.children(recursive=True)]
        raise KeyboardInterrupt


def test_a_process_ends_when_its_parent_is_killed() -> None:
    watched = "import os, time; from alm_pipeline.runtime.supervisor import end_with_parent; "
    watched += "end_with_parent(os.getppid()); print(os.getpid(), flush=True); time.sleep(600)"
    starting = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {watched!r}])"
    parent = subprocess.Popen([sys.executable, "-c", starting], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def write_error(folder: Path, rank: int, **content: object) -> None:
    (folder / f"error-{rank}.json").write_text(json.dumps(content))


def test_the_earliest_error_is_reported(tmp_path: Path) -> None:
    assert str(_error(tmp_path, {0: 3}, ["what", "happened"])).endswith("(exit code 3 of process 0):\nwhat\nhappened")
    write_error(tmp_path, 0, time=2.0, is_user_error=False, text="process 0 can't reach process 1")
    write_error(tmp_path, 1, time=1.0, is_user_error=False, text="process 1 is out of memory")
    assert str(_error(tmp_path, {0: 1, 1: 1}, [])) == "process 1 is out of memory"
    killed = _error(tmp_path, {0: 1, 1: -9}, [])
    assert isinstance(killed, UserError)
    assert "training process 1 was killed (SIGKILL), which ended the others: out of memory" in str(killed)
    assert "process 1 was killed (SIGSEGV), which ended the others: a library" in str(_error(tmp_path, {1: -11}, []))
    write_error(tmp_path, 2, time=0.0, is_user_error=True, text="train.freeze: matches nothing")
    error = _error(tmp_path, {0: 1, 1: -9}, [])
    assert isinstance(error, UserError)
    assert str(error) == "train.freeze: matches nothing"
