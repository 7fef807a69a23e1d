"""A student's training in several processes.

By itself, on one machine or, with torchrun's own settings, on several:

    torchrun --nproc-per-node 2 -m alm_pipeline.distillation.launch CONFIG --storage ROOT

Or by `train.processes`, as a child of whoever runs the pipeline: `distil_in_processes`.
"""

import argparse
import collections
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from alm_pipeline.config import AlmConfig, load_config
from alm_pipeline.distillation.processes import free_gpu_memory, joined, this_process
from alm_pipeline.progress import logger, say
from storage.errors import UserError
from storage.urls import configuration_as_environment

_PARENT, _ERRORS = "ALM_PARENT", "ALM_ERRORS"
_GRACE_S = 10.0
_KEPT_LINES = 60
_KILLED = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\n +exitcode +: -(\d+) ")
"""in torchrun's last words"""


def distil_in_processes(config: AlmConfig, root: str, count: int) -> None:
    """Let so many new processes on this machine distil the student, and wait for their end.

    They are in this process's group, say what they do in its log, and end with it, however it ends. Raises UserError
    with the text of theirs, and RuntimeError when one of them fails otherwise, or is killed.
    """
    free_gpu_memory()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(config.model_dump_json(), encoding="utf-8")
        module = ("-m", "alm_pipeline.distillation.launch", str(file), "--storage", root)
        command = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *module)
        parent = {_PARENT: str(os.getpid()), _ERRORS: folder}
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
        say(last[-1])
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


def main(arguments: list[str] | None = None) -> None:
    """One of the processes, started by torchrun or `accelerate launch`."""
    parser = argparse.ArgumentParser(prog="alm_pipeline.distillation.launch", description=__doc__)
    parser.add_argument("config", help="a YAML or JSON file, or a recipe's name")
    parser.add_argument("--storage", default="alm-data", help="a folder, or any fsspec URL")
    given = parser.parse_args(arguments)
    if parent := os.environ.get(_PARENT):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        _distil(given.config, given.storage)
    except Exception as error:
        _write_down(error)
        print(f"error: {error}" if isinstance(error, UserError) else traceback.format_exc(), file=sys.stderr)
        # at once: destructors could wait for processes that wait for this one
        sys.stderr.flush()
        os._exit(1)


def _distil(source: str, root: str) -> None:
    from alm_pipeline.pipeline import Pipeline
    from alm_pipeline.recipes import RECIPES, recipe

    config = recipe(source) if source in RECIPES else load_config(Path(source))
    if this_process().count == 1:
        Pipeline(config, root).distil()
        return
    with joined() as process:
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        logger.setLevel("INFO" if process.is_first else "WARNING")
        Pipeline(config, root).distil()


def _write_down(error: Exception) -> None:
    """For the parent."""
    if folder := os.environ.get(_ERRORS):
        is_users = isinstance(error, UserError)
        text = str(error) if is_users else f"training process {this_process().rank}: {traceback.format_exc()}"
        content = {"time": time.time(), "is_users": is_users, "text": text}
        Path(folder, f"error-{this_process().rank}.json").write_text(json.dumps(content), encoding="utf-8")


def _end_with(parent: int) -> None:
    """End this process once the parent is no more: one that is killed can't do it itself."""
    while _is_alive(parent):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
