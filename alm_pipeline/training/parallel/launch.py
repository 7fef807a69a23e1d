"""Training a student in several processes.

Started by hand, on one machine or, with torchrun's own options, on several:

    torchrun --nproc-per-node 2 -m alm_pipeline.training_process CONFIG --storage ROOT

Or started by `train_in_processes` if `train.processes` asks for it, as children of the process that runs the pipeline,
with the environment variables that torchrun sets. torchrun itself is not between them: it would add its own report and
tracebacks to every error, hide which process failed first, and need up to 30 s to end.

Each process writes its error into a file, and the earliest error is the cause: the others follow from it within
milliseconds, when the peers can't reach each other.
"""

import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import torch.distributed

from alm_pipeline.config import AlmConfig
from alm_pipeline.runtime.own_packages import environment_with_own
from alm_pipeline.runtime.progress import show_line
from alm_pipeline.training.parallel.processes import free_gpu_memory
from storage.errors import UserError
from storage.printed.secrets import with_references
from storage.urls import configuration_as_environment

PARENT, ERRORS = "ALM_PARENT", "ALM_ERRORS"
_HOST = "127.0.0.1"
_GRACE_S = 1.0
"""shorter than the supervisor's, which kills this process as well"""
_LAST_LINES = 60
Children = Sequence["subprocess.Popen[str]"]


def train_in_processes(config: AlmConfig, root: str, count: int) -> None:
    """Train the student in `count` new processes on this machine, and wait until they end.

    They write to this process's log and end with it, however it ends. Raises UserError with the text of a process's
    UserError or if one of them is killed, and RuntimeError if one fails otherwise.
    """
    free_gpu_memory()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        # command lines and files can be read by others, the environment of a process only by its owner
        (content, storage), secrets = with_references([config.model_dump(mode="json"), root])
        file.write_text(json.dumps(content), encoding="utf-8")
        command = (sys.executable, "-m", "alm_pipeline.training_process", str(file), "--storage", storage)
        # the processes find each other here; the system chooses a free port
        store = torch.distributed.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]  # not declared
        environments = [secrets | own for own in _environments(Path(folder), count, store.port)]
        with _child_processes(command, environments) as (children, lines):
            failed = _wait_for_failure(children)
        if failed:
            raise _error(Path(folder), failed, list(lines))


def _environments(folder: Path, count: int, port: int) -> Iterator[dict[str, str]]:
    """Yield each process's environment: which one it is, in torchrun's variables, and where the others are."""
    common = {**environment_with_own(), **configuration_as_environment()}
    common |= {PARENT: str(os.getpid()), ERRORS: str(folder), "PYTHONUNBUFFERED": "1"}
    common |= {"MASTER_ADDR": _HOST, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    if count > 1:
        common.setdefault("OMP_NUM_THREADS", "1")
    for rank in range(count):
        of_rank = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        yield common | {name: str(value) for name, value in of_rank.items()}


@contextmanager
def _child_processes(
    command: Sequence[str], environments: Sequence[Mapping[str, str]]
) -> Iterator[tuple[Children, collections.deque[str]]]:
    """Start a process per environment. All have ended, with all of their own children, when the context ends.

    Yields the processes and the last lines that they have written. Every line is passed on to the log until the
    context ends: after that, they only report that the others have ended.
    """
    reading, writing = os.pipe()
    last_lines, has_ended = collections.deque[str](maxlen=_LAST_LINES), threading.Event()
    children: list[subprocess.Popen[str]] = []
    try:
        with os.fdopen(writing, "wb") as output:
            for environment in environments:
                # in a session of its own: a terminal's Ctrl-C is handled here
                options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, "start_new_session": True}
                children.append(subprocess.Popen(command, env=dict(environment), text=True, **options))  # type: ignore[call-overload]
        lines = os.fdopen(reading, encoding="utf-8", errors="replace")
        forwarding = threading.Thread(target=_forward_output, args=(lines, last_lines, has_ended), daemon=True)
        forwarding.start()
        yield children, last_lines
        if not any(child.returncode for child in children):
            forwarding.join(_GRACE_S)  # the last lines of processes that have succeeded
    finally:
        has_ended.set()
        _end_trees(children)


def _forward_output(lines: IO[str], last_lines: "collections.deque[str]", has_ended: threading.Event) -> None:
    with lines:
        for line in lines:
            if not has_ended.is_set():
                last_lines.append(line.rstrip())
                show_line(last_lines[-1])


def _wait_for_failure(children: Children) -> dict[int, int]:
    """Wait until all processes have succeeded or one has failed. Returns the exit codes that are not 0, by rank."""
    while True:
        codes = [child.poll() for child in children]
        if failed := {rank: code for rank, code in enumerate(codes) if code}:
            return failed
        if None not in codes:
            return {}
        time.sleep(0.05)


def _end_trees(children: Children) -> None:
    """Ask the processes and their children to end, and kill those that remain after the grace period."""
    family = [member for child in children if child.poll() is None for member in _tree(child.pid)]
    for member in family:
        _send_signal(member, signal.SIGTERM)
    for member in psutil.wait_procs(family, timeout=_GRACE_S)[1]:
        _send_signal(member, signal.SIGKILL)
    for child in children:
        child.wait()


def _tree(pid: int) -> Iterable[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _send_signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _error(folder: Path, failed: Mapping[int, int], last_lines: Sequence[str]) -> Exception:
    """Return the error that caused the end: a UserError, a killed process, or the earliest other error.

    `failed` are the exit codes of the processes that had ended first, by rank.
    """
    errors = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("error-*.json")]
    first = min(errors, key=lambda error: error["time"], default=None)
    if first and first["is_user_error"]:
        return UserError(first["text"])
    # where one was killed, the others fail because they can't reach it
    if killed := {rank: -code for rank, code in failed.items() if code < 0}:
        rank, number = next(iter(killed.items()))
        return UserError(
            f"training process {rank} was killed ({signal.Signals(number).name}), which ended the others: "
            f"{_cause(number)} Run it again: it resumes from the last checkpoint"
        )
    if first:
        return RuntimeError(first["text"])
    codes = ", ".join(f"{code} of process {rank}" for rank, code in failed.items())
    return RuntimeError("\n".join([f"training processes failed (exit code {codes}):", *last_lines]))


def _cause(number: int) -> str:
    if number in (signal.SIGKILL, signal.SIGTERM):
        return "out of memory (fewer `train.processes` or `train.batch_tokens` need less), or by hand?"
    return "a library crashed."
