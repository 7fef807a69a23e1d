"""One process per GPU that scores: Python's lock would let one thread at a time launch work for all of them.

Each process scores its own shards with `score`, as a run on another machine would, so nothing is lost if one is killed.
It is told what to do by its command line, and answers in lines of JSON. Shards are shared out by their tokens,
beforehand: the GPUs of a machine are equally fast.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, Queue
from typing import IO, Any

import psutil

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.runtime.own_packages import environment_with_own
from alm_pipeline.runtime.progress import Advance
from storage.dataset import Dataset
from storage.errors import UserError
from storage.urls import configuration_as_environment

_GRACE_S = 5.0
_LOOK_S = 1.0
Message = dict[str, Any]


def shared_out(sizes: Mapping[int, int], shards: Sequence[int], count: int) -> list[list[int]]:
    """Return the shards of each of `count` processes: the largest first, each to the one with the fewest tokens."""
    parts, totals = [list[int]() for _ in range(count)], [0] * count
    for shard in sorted(shards, key=lambda shard: (-sizes[shard], shard)):
        least = totals.index(min(totals))
        parts[least].append(shard)
        totals[least] += sizes[shard]
    return [sorted(part) for part in parts]


def score_in_processes(
    tokens: Dataset,
    scores: Dataset,
    teacher: ModelReference,
    config: ScoreConfig,
    parts: Mapping[str, Sequence[int]],
    advance: Advance,
) -> None:
    """Score the shards of each device in a process of its own; `advance` is called with the tokens.

    If one fails, or this is interrupted, all end. Raises UserError with the error of the first that fails.
    """
    jobs = {device: _job(tokens, scores, teacher, config, device, shards) for device, shards in parts.items() if shards}
    with _processes(jobs) as (children, messages):
        running = set(children)
        while running:
            try:
                device, message = messages.get(timeout=_LOOK_S)
            except Empty:
                continue
            if "tokens" in message:
                advance(message["tokens"])
            elif "error" in message:
                raise UserError(message["error"])
            elif code := children[device].wait():
                raise UserError(
                    f"the process that scored on {device} ended with status {code}"
                    f"{' (killed: out of memory?)' if code < 0 else ''}: run it again, it goes on where it stopped"
                )
            else:
                running.discard(device)


def _job(
    tokens: Dataset,
    scores: Dataset,
    teacher: ModelReference,
    config: ScoreConfig,
    device: str,
    shards: Sequence[int],
) -> Message:
    return {
        "tokens": _described(tokens),
        "scores": _described(scores),
        "teacher": {"name": teacher.name, "trust_remote_code": teacher.trust_remote_code},
        "revision": teacher.revision,
        "config": config.model_copy(update={"devices": (device,)}).model_dump(mode="json"),
        "shards": list(shards),
    }


def _described(dataset: Dataset) -> Message:
    return {
        "root": dataset.root,
        "kind": dataset.kind,
        "label": dataset.label,
        "identity": dict(dataset.identity),
        "provenance": dict(dataset.provenance),
        "rewritten": None if dataset.rewritten is None else sorted(dataset.rewritten),
    }


@contextmanager
def _processes(
    jobs: Mapping[str, Message],
) -> Iterator[tuple[dict[str, "subprocess.Popen[str]"], "Queue[tuple[str, Message]]"]]:
    """Start a process per device. They have ended, with all that they have started, when the context ends.

    Yields them, and their messages; an empty one is the last of a device.
    """
    messages: Queue[tuple[str, Message]] = Queue()
    children: dict[str, subprocess.Popen[str]] = {}
    environment = {**environment_with_own(), **configuration_as_environment()}
    command = (sys.executable, "-m", "alm_pipeline.scoring.process", str(os.getpid()))
    try:
        for device, job in jobs.items():
            child = subprocess.Popen(
                command,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is handled here
            )
            children[device] = child
            assert child.stdin is not None
            assert child.stdout is not None
            with child.stdin as stdin:
                json.dump(job, stdin)
            reading = threading.Thread(target=_forward, args=(device, child.stdout, messages), daemon=True)
            reading.start()
        yield children, messages
    finally:
        _end(children.values())


def _forward(device: str, lines: IO[str], messages: "Queue[tuple[str, Message]]") -> None:
    with lines:
        for line in lines:
            messages.put((device, json.loads(line)))
    messages.put((device, {}))


def _end(children: Any) -> None:
    """End the processes and their children, which have nothing to lose: a shard is written whole or not at all."""
    family = []
    for child in children:
        if child.poll() is None:
            try:
                process = psutil.Process(child.pid)
                family += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=_GRACE_S)
    for child in children:
        child.wait()
