"""Training a student in several processes.

Started by hand, on one machine or, with torchrun's own options, on several:

    torchrun --nproc-per-node 2 -m alm_pipeline.training_process CONFIG --storage ROOT

Or started by `train_in_processes` if `train.processes` asks for it, as a child of the process that runs the pipeline.

Each process writes its error into a file, and the earliest error is the cause: the others follow from it within
milliseconds, when the peers can't reach each other. torchrun's own error files (`torch.distributed.elastic`'s `record`)
can't decide that: their times are whole seconds, a killed process writes none, and only one file reaches the parent.
So killed processes are read from torchrun's report, which lists the exit code of each rank.
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
from alm_pipeline.runtime.own_packages import environment_with_own
from alm_pipeline.runtime.progress import show_line
from alm_pipeline.training.parallel.processes import free_gpu_memory
from storage.errors import UserError
from storage.printed.secrets import with_references
from storage.urls import configuration_as_environment

PARENT, ERRORS = "ALM_PARENT", "ALM_ERRORS"
_GRACE_S = 10.0
_LAST_LINES = 60
_KILLED = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\n +exitcode +: -(\d+) ")
"""a failed process in torchrun's report, with the signal that killed it"""


def train_in_processes(config: AlmConfig, root: str, count: int) -> None:
    """Train the student in `count` new processes on this machine, and wait until they end.

    They belong to this process's group, write to its log, and end with it, however it ends. Raises UserError with the
    text of a process's UserError, and RuntimeError if one of them fails otherwise or is killed.
    """
    free_gpu_memory()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        # command lines and files can be read by others, the environment of a process only by its owner
        (content, storage), secrets = with_references([config.model_dump(mode="json"), root])
        file.write_text(json.dumps(content), encoding="utf-8")
        module = ("-m", "alm_pipeline.training_process", str(file), "--storage", storage)
        command = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *module)
        own = {PARENT: str(os.getpid()), ERRORS: folder, **secrets}
        with _child_process(command, {**environment_with_own(), **configuration_as_environment(), **own}) as child:
            assert child.stdout
            last_lines = _forward_output(child.stdout)
        if child.returncode:
            raise _error(Path(folder), child.returncode, last_lines)


@contextmanager
def _child_process(command: tuple[str, ...], environment: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that has ended, with all of its own children, when the context ends."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, env=dict(environment), text=True, errors="replace", **streams) as child:  # type: ignore[call-overload]
        try:
            yield child
            child.wait()
        except BaseException:
            _end_tree(child.pid)
            raise


def _end_tree(pid: int) -> None:
    """Ask the process and its children to end, and kill those that remain after the grace period."""
    try:
        process = psutil.Process(pid)
        # torchrun's children are in sessions of their own: they would outlive it
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        _send_signal(member, signal.SIGTERM)
    for member in psutil.wait_procs(family, timeout=_GRACE_S)[1]:
        _send_signal(member, signal.SIGKILL)


def _send_signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _forward_output(lines: IO[str]) -> list[str]:
    """Pass every line on to the log until the child ends. Returns the last lines."""
    last_lines = collections.deque[str](maxlen=_LAST_LINES)
    for line in lines:
        last_lines.append(line.rstrip())
        show_line(last_lines[-1])
    return list(last_lines)


def _error(folder: Path, code: int, last_lines: list[str]) -> Exception:
    """Return the error that caused the end: a UserError, a killed process, or the earliest other error."""
    errors = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("error-*.json")]
    first = min(errors, key=lambda error: error["time"], default=None)
    if first and first["is_user_error"]:
        return UserError(first["text"])
    output = "\n".join(last_lines)
    # the other processes failed because they could not reach the killed one, or because torchrun ended them
    killed = [(rank, int(number)) for rank, number in _KILLED.findall(output) if int(number) != signal.SIGTERM]
    if killed:
        rank, number = killed[-1]
        return RuntimeError(
            f"training process {rank} was killed ({signal.Signals(number).name}), which ended the others: out of "
            "memory, or by hand? Run it again: it resumes from the last checkpoint"
        )
    return RuntimeError(first["text"] if first else f"the training processes failed (exit code {code}):\n{output}")
