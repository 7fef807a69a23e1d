"""A student's training in several processes.

By itself, on one machine or, with torchrun's own settings, on several:

    torchrun --nproc-per-node 2 -m alm_pipeline.training_process CONFIG --storage ROOT

Or by `train.processes`, as a child of whoever runs the pipeline: `train_in_processes`.
"""

import collections
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from alm_pipeline.config import AlmConfig
from alm_pipeline.runtime.progress import show_line
from alm_pipeline.training.parallel.processes import free_gpu_memory
from storage.errors import UserError
from storage.urls import configuration_as_environment

PARENT, ERRORS = "ALM_PARENT", "ALM_ERRORS"
_GRACE_S = 10.0
_KEPT_LINES = 60
_KILLED = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\n +exitcode +: -(\d+) ")
"""in torchrun's last words"""


def train_in_processes(config: AlmConfig, root: str, count: int) -> None:
    """Let so many new processes on this machine train the student, and wait for their end.

    They are in this process's group, say what they do in its log, and end with it, however it ends. Raises UserError
    with the text of theirs, and RuntimeError when one of them fails otherwise, or is killed.
    """
    free_gpu_memory()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(config.model_dump_json(), encoding="utf-8")
        module = ("-m", "alm_pipeline.training_process", str(file), "--storage", root)
        command = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *module)
        parent = {PARENT: str(os.getpid()), ERRORS: folder}
        with _child(command, {**os.environ, **configuration_as_environment(), **parent}) as child:
            assert child.stdout
            last_lines = _logged(child.stdout)
        if child.returncode:
            raise _error(Path(folder), child.returncode, last_lines)


@contextmanager
def _child(command: tuple[str, ...], environment: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Has ended, with all of its own children, at the end."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, env=dict(environment), text=True, errors="replace", **streams) as child:  # type: ignore[call-overload]
        try:
            yield child
            child.wait()
        except BaseException:
            _end(child.pid)
            raise


def _end(pid: int) -> None:
    """Ask the process and its children to end; kill what is still there after a while."""
    try:
        process = psutil.Process(pid)
        # torchrun's children are in sessions of their own: they would outlive it
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        _signal(member, signal.SIGTERM)
    for member in psutil.wait_procs(family, timeout=_GRACE_S)[1]:
        _signal(member, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _logged(lines: IO[str]) -> list[str]:
    """Every line to whoever looks, until the child ends; returns the last ones."""
    last = collections.deque[str](maxlen=_KEPT_LINES)
    for line in lines:
        last.append(line.rstrip())
        show_line(last[-1])
    return list(last)


def _error(folder: Path, code: int, last_lines: list[str]) -> Exception:
    """What went wrong first, as torchrun tells of a process that was killed, or as the processes wrote it down."""
    written = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("error-*.json")]
    first = min(written, key=lambda error: error["time"], default=None)
    if first and first["is_users"]:
        return UserError(first["text"])
    told = "\n".join(last_lines)
    # the others' errors are that they can't reach it, or that torchrun ended them
    killed = [found for found in _KILLED.findall(told) if int(found[1]) != signal.SIGTERM]
    if killed:
        rank, number = killed[-1]
        return RuntimeError(
            f"training process {rank} was killed ({signal.Signals(int(number)).name}), which ended the others: out of "
            "memory, or by hand? Run it again: it goes on from the last checkpoint"
        )
    return RuntimeError(first["text"] if first else f"the training processes failed (exit code {code}):\n{told}")
