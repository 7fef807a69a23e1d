"""What Prefect costs: `python -m benchmarks.orchestrate [--measure cost] [--shards 100] [--shard-megabytes 1.2]`.

On a server of its own, on this machine. Three questions, each answered within one run:

- the wall time of preparation (shards, two tokenizations, alignment) by the flow's tasks over the same stages called
  directly, in this process and in turn, on threads;
- the same by two processes over one, each with one thread, in turn, and what two bare processes that only encode gain;
- task runs, wall time and the server's memory for 10,000 shards (`--sleeping`), whose stages sleep.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource, StudentConfig
from alm_pipeline.models.tokenizer import LoadedTokenizer, load_tokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines.fastokens import FastokensEngine
from benchmarks.corpus import mixed_documents
from flows.alm_run import AlmRun, Workers
from flows.execution.jobs import Job, JobStage, plan_jobs, run_jobs
from flows.execution.runners import Runner, task_runner
from tests.flows.loopback import Loopback

MEASURES = ("cost", "processes", "sleep")
STAGES: tuple[JobStage, ...] = ("tokenize teacher", "tokenize student", "align")
"""of the simulated flow"""


def main() -> None:
    options = arguments()
    if not options.server_pid:
        with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as loopback:
            # Prefect reads the server's address when it is imported
            pid = ["--server-pid", str(loopback.server_pid)]
            command = [sys.executable, "-m", "benchmarks.orchestrate", *sys.argv[1:], *pid]
            subprocess.run(command, env=loopback.environment, check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        for shards in options.shards:
            config = configuration(Path(folder, str(shards)), shards, options)
            if "cost" in options.measure:
                print(f"{shards} shards, {cost(config, options.rounds)}", flush=True)
            if "processes" in options.measure:
                print(f"{shards} shards, {speed_up(config, options.rounds)}", flush=True)
                print(f"bare encoding in two processes: {bare_speed_up(config):.2f} times as fast", flush=True)
    if "sleep" in options.measure:
        for count in options.sleeping:
            print(sleeping_shards(options.server_pid, count, options.sleep), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", choices=MEASURES, nargs="+", default=MEASURES)
    parser.add_argument("--shards", type=int, nargs="+", default=[100])
    parser.add_argument("--shard-megabytes", type=float, default=1.2)
    parser.add_argument("--teacher", default="gemma3")
    parser.add_argument("--student", default="llama3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sleeping", type=int, nargs="+", default=[10_000], help="shards whose stages sleep")
    parser.add_argument("--sleep", type=float, default=0.01, help="seconds per shard and stage")
    parser.add_argument("--server-pid", type=int, help="of the server that PREFECT_API_URL names; by default one's own")
    return parser.parse_args()


@contextmanager
def server(folder: Path) -> Iterator[Loopback]:
    loopback = Loopback(folder)
    try:
        loopback.start()
        yield loopback
    finally:
        loopback.close()


def configuration(folder: Path, shards: int, options: argparse.Namespace) -> AlmConfig:
    """A corpus of about so many shards, and tiny models with real tokenizers."""
    folder.mkdir()
    documents = mixed_documents(shards * options.shard_megabytes)
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents), encoding="utf-8")
    source = FilesSource(urls=(str(folder / "corpus.jsonl"),))
    size = int(options.shard_megabytes * 1e6)
    return AlmConfig(
        corpus=CorpusConfig(name="mixed", source=source, max_bytes=16_384, shard_bytes=size),
        teacher=model(folder / "teacher", options.teacher),
        student=StudentConfig(model=model(folder / "student", options.student)),
    )


def model(folder: Path, name: str) -> str:
    # not above: the processes of a pool import this module, where a deployment's import only Prefect's
    from tests import tiny
    from tests.real_tokenizers import tokenizer_folder

    tokenizer = load_tokenizer(str(tokenizer_folder(name)))
    made = tiny.tiny_llama(len(tokenizer))
    made.config.max_position_embeddings = 2**17  # texts are not cut to it
    return tiny.save(folder, made, tokenizer)


def timed(work: Callable[[str], object]) -> float:
    """On a machine that knows nothing of the fast engine yet."""
    with tempfile.TemporaryDirectory() as root, patch.dict(os.environ, ALM_CACHE=f"{root}/machine"):
        start = time.perf_counter()
        work(root)
        return time.perf_counter() - start


def directly(config: AlmConfig, root: str) -> None:
    pipeline = Pipeline(config, root)
    pipeline.shard()
    pipeline.tokenize("teacher")
    pipeline.tokenize("student")
    pipeline.align()


@flow(persist_result=False)
def prepared(config: AlmConfig, root: str, runner: Runner, workers: int) -> None:
    run = AlmRun(Pipeline(config, root), root, {})
    run.prepare(Workers(task_runner(runner, workers, None), workers, group_bytes=16 * 2**20), pool=None)


def cost(config: AlmConfig, rounds: int) -> str:
    direct, by_flow = [], []
    for _ in range(rounds):
        direct.append(timed(lambda root: directly(config, root)))
        by_flow.append(timed(lambda root: prepared(config, root, "threads", 2)))
    seconds = f"directly {min(direct):.1f} s, by the flow {min(by_flow):.1f} s: {min(by_flow) / min(direct) - 1:+.1%}"
    return f"{seconds} ({', '.join(f'{flow / own - 1:+.1%}' for own, flow in zip(direct, by_flow, strict=True))})"


def speed_up(config: AlmConfig, rounds: int) -> str:
    times = [preparation_seconds(config, count) for _ in range(rounds) for count in (1, 2)]
    one, two = times[::2], times[1::2]
    (alone, busy), (both, both_busy) = min(one), min(two)
    processes = f"one process {alone:.1f} s, {busy:.2f} processors busy; two {both:.1f} s, {both_busy:.2f} busy"
    each = ", ".join(f"{first / second:.2f}" for (first, _), (second, _) in zip(one, two, strict=True))
    return f"{processes}: {alone / both:.2f} times as fast ({each})"


def preparation_seconds(config: AlmConfig, processes: int) -> tuple[float, float]:
    """And how many processors were busy meanwhile."""
    busy = processor_seconds()
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):
        seconds = timed(lambda root: prepared(config, root, "processes", processes))
    return seconds, (processor_seconds() - busy) / seconds


def bare_speed_up(config: AlmConfig) -> float:
    """What two processes gain where each does nothing but encode the same texts: no more can be had on this machine."""
    with (
        patch.dict(os.environ, OMP_NUM_THREADS="1"),
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool,
    ):
        both, texts = [config.teacher] * 2, list(mixed_documents(8))
        list(pool.map(encoding_seconds, both, [texts[:9]] * 2))  # starts them, and loads their tokenizers
        alone = pool.submit(encoding_seconds, config.teacher, texts).result()
        return 2 * alone / max(pool.map(encoding_seconds, both, [texts] * 2))


def encoding_seconds(tokenizer: str, texts: list[str]) -> float:
    encoder = fast_encoder(tokenizer)
    start = time.perf_counter()
    encoder.encode(texts)
    return time.perf_counter() - start


@lru_cache(1)
def fast_encoder(tokenizer: str) -> ByteEncoder:
    encoder = ByteEncoder(LoadedTokenizer(tokenizer), None)
    backend = encoder.tokenizer.encoding_backend
    return encoder.with_engine(FastokensEngine(backend, encoder.view, encoder.standard))


def processor_seconds() -> float:
    """Of this process and those that it started and that ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@task(name="sleep", cache_policy=NO_CACHE)
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@flow(persist_result=False)
def sleeping(shards: int, seconds: float) -> int:
    # planned here, as in the real flow: Prefect refuses parameters of over 512 kB
    jobs = sleeping_jobs(shards)
    with task_runner("threads", 8, None) as runner:

        def submit(job: Job) -> Any:
            return runner.submit(sleep, {"seconds": seconds * len(job.shards)})

        run_jobs(jobs, submit, lambda _: 16, lambda *_: None)
    return len(jobs)


def sleeping_shards(server_pid: int, count: int, seconds: float) -> str:
    start = time.perf_counter()
    runs = sleeping(count, seconds)
    took = time.perf_counter() - start
    ideal = seconds * count * len(STAGES) / 8
    memory = psutil.Process(server_pid).memory_info().rss / 2**20
    measured = f"{runs} task runs in {took:.1f} s, {ideal:.1f} s of them asleep; server {memory:.0f} MiB"
    return f"{count:,} shards: {measured}"


def sleeping_jobs(count: int) -> list[Job]:
    shards = range(count)
    return plan_jobs(dict.fromkeys(shards, 32 * 2**20), dict.fromkeys(STAGES, shards), 64 * 2**20)


if __name__ == "__main__":
    main()
