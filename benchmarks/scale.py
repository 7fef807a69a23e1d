"""What a store of many shards costs: `python -m benchmarks.scale [--shards 1000 10000 100000] [--places disk s3]`.

A real run on a tiny corpus writes one shard of every dataset. Stand-in stores hold it many times, with the records and
manifests that the stages would have written. Each operation then works on stores of every size, in a process of its
own, after it has worked on the store of one shard, so that imports, models and hashing the corpus count nowhere. It
prints seconds, the memory that the operation added at its peak, and requests to the store (on a disk: files and folders
that were opened), each with its growth per shard: 1.0 is as many times as there are shards, more is faster than that.

The S3 server is the one that the tests start. The stores are made under `--root`, and reused there.
"""

import argparse
import dataclasses
import gc
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import s3fs

from alm_pipeline.config import AlmConfig, load_config
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.estimate import make_plan
from alm_pipeline.scoring.finite import find_damages
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.examples import read_examples
from flows.alm_run import AlmRun
from flows.cli.listing import _stored_rows
from flows.stages import PHASES
from storage.dataset import Dataset, Manifest
from storage.schemas import MANIFEST
from storage.upkeep.catalog import Catalog
from storage.urls import join_url, list_files, read_bytes, remove
from tests import tiny
from tests.storage.s3_server import BUCKET, S3Server, environment, weed_binary

PLACES = ("disk", "s3")
_GROUP_BYTES = 64 * 2**20
_FILES_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Costs:
    """What an operation took."""

    seconds: float
    """of processors, which a busy machine changes less than those of the clock"""
    clock: float
    megabytes: float
    requests: int
    kinds: str

    @property
    def numbers(self) -> tuple[float, float, int]:
        return self.seconds, self.megabytes, self.requests

    @property
    def text(self) -> str:
        times = f"{self.seconds:8.2f} s of processors, {self.clock:8.2f} on the clock"
        return f"{times}, {self.megabytes:7.0f} MB {self.requests:8,} requests"


# operations


def open_stream(pipeline: Pipeline, epoch_share: float = 0.0) -> object:
    """Make the first batch, of an epoch or after a share of its shards."""
    stream = BatchStream(pipeline.caches, pipeline.config.objective, pipeline.config.train)
    manifest = pipeline.scores.complete_manifest()
    if units := int(epoch_share * len(manifest.shards)):
        rows = read_examples(pipeline.caches, 0, "train", pipeline.config.objective).num_rows
        stream.load_state_dict({**stream.state_dict(), "unit_rows": [rows] * units})
    with closing(iter(stream)) as batches:  # type: ignore[type-var]
        return next(batches)


def resume(pipeline: Pipeline) -> None:
    """Tokenize and align what is missing, one shard each, and finish the datasets."""
    pipeline.tokenize("teacher")
    pipeline.tokenize("student")
    pipeline.align()


def interrupt(pipeline: Pipeline) -> None:
    """Take the manifests of what `resume` makes, and the last shard of each."""
    for name in ("teacher_tokens", "student_tokens", "alignments"):
        dataset = pipeline.caches[name]
        if manifest := dataset.manifest():
            remove(join_url(dataset.url, MANIFEST))
            remove(dataset.record_url(len(manifest.shards) - 1))
            remove(dataset.shard_url(len(manifest.shards) - 1))


OPERATIONS: Mapping[str, Callable[[Pipeline], object]] = {
    "list one dataset": lambda pipeline: list_files(pipeline.examples.url),
    "alm list": lambda pipeline: _stored_rows(Catalog.open(pipeline.root)),
    "alm verify": lambda pipeline: [find_damages(entry) for entry in Catalog.open(pipeline.root).entries.values()],
    "plan": lambda pipeline: make_plan(pipeline),
    "check": lambda pipeline: pipeline.preflight(PHASES["student"]),
    "open a stream": open_stream,
    "open a stream in mid-epoch": lambda pipeline: open_stream(pipeline, 0.5),
    "plan the jobs of a resumed run": lambda pipeline: AlmRun(pipeline, pipeline.root, {})._missing_jobs(
        _GROUP_BYTES, None
    ),
    "resume": resume,
}
_INTERRUPTED = ("plan the jobs of a resumed run", "resume")


def measure(name: str, config: AlmConfig, seed: str, root: str) -> Costs:
    """Time an operation on a store, once it has worked on the store of one shard."""
    operation = OPERATIONS[name]
    if name in _INTERRUPTED:
        for place in (seed, root):
            interrupt(Pipeline(config, place))
    with counting(root) as requests:
        operation(Pipeline(config, seed))
        pipeline = Pipeline(config, root)
        _ = pipeline.examples.name
        requests.clear()
        gc.collect()
        before = forget_peak()
        start = time.perf_counter(), time.process_time()
        operation(pipeline)
        clock, seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(requests.items()))
    return Costs(seconds, clock, max(0.0, peak_megabytes() - before), sum(requests.values()), kinds)


def forget_peak() -> float:
    """Let the peak of this process's memory begin anew; returns the megabytes that it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()


def peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


@contextmanager
def counting(root: str) -> Iterator[Counter[str]]:
    """Count the requests to a store by kind; on a disk, the files that are opened, and the folders that are listed."""
    counts: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        counts[method] += 1
        return await call(self, method, *arguments, **options)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.scandir", "os.listdir") and str(arguments[0]).startswith(root):
            counts[event] += 1

    sys.addaudithook(audit)
    with patch.object(s3fs.S3FileSystem, "_call_s3", counted):
        yield counts


# stores


def seed_store(folder: Path) -> AlmConfig:
    """Run the stages on a tiny corpus of one shard, into `folder`/seed."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = [{"text": f"{text} {number}"} for number in range(4) for text in tiny.TEXTS]
        (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        sides = {"teacher": tiny.sentencepiece_tokenizer(), "student": tiny.byte_level_tokenizer()}
        models = {"teacher": tiny.tiny_gemma, "student": tiny.tiny_llama}
        names = {side: tiny.save(folder / side, models[side](len(each)), each) for side, each in sides.items()}
        corpus = {"name": "scale", "source": {"kind": "files", "urls": [str(folder / "corpus.jsonl")]}, "held_out": 0.2}
        settings = {"corpus": corpus, "teacher": names["teacher"], "student": {"model": names["student"]}}
        # as at real size, where a shard has thousands of rows, the buffer holds a few shards
        train = {"batch_tokens": 512, "row_tokens": 512, "shuffle_buffer": 64}
        config = AlmConfig.model_validate(settings | {"train": train, "score": {"dtype": "float32"}})
        Pipeline(config, str(folder / "seed")).cache()
        (folder / "config.json").write_text(config.model_dump_json())
    return load_config(folder / "config.json")


def stand_in_store(config: AlmConfig, seed: str, root: Path, shards: int) -> None:
    """Write the datasets of the seed's one shard, many times, under `root`."""
    for dataset in Pipeline(config, seed).caches.values():
        copy_shard(dataset, dataclasses.replace(dataset, root=str(root)), shards)


def copy_shard(dataset: Dataset, target: Dataset, shards: int) -> None:
    content, record = read_bytes(dataset.shard_url(0)), read_bytes(dataset.record_url(0))
    assert content is not None
    assert record is not None
    Path(target.url).mkdir(parents=True, exist_ok=True)
    for shard in target.missing(range(shards)):
        for url, stored in ((target.shard_url(shard), content), (target.record_url(shard), record)):
            Path(url).write_bytes(stored)
    manifest = repeated(dataset.complete_manifest(), shards)
    Path(target.url, MANIFEST).write_bytes(manifest.to_json())


def repeated(manifest: Manifest, shards: int) -> Manifest:
    """Return the manifest of a dataset that has the one shard many times."""
    counts = {name: count * shards for name, count in manifest.counts.items()}
    dropped = {name: count * shards for name, count in manifest.dropped.items()}
    sums = {"rows": manifest.rows * shards, "bytes": manifest.bytes * shards, "counts": counts, "dropped": dropped}
    return manifest.model_copy(update={"shards": manifest.shards * shards, **sums})


@contextmanager
def s3_stores(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Start the S3 server with a copy of these stores of the folder, and set the environment for it."""
    server = S3Server(folder / "server")
    ports = folder / "ports.json"
    if ports.exists():  # of an earlier run, whose data knows them
        server._ports = json.loads(ports.read_text())
        server.endpoint = f"http://127.0.0.1:{server._ports['s3']}"
    ports.write_text(json.dumps(server._ports))
    server.start()
    try:
        with patch.dict(os.environ, environment(server.endpoint)):
            for name in names:
                upload(folder / name, server)
            yield
    finally:
        server.kill()


def upload(store: Path, server: S3Server) -> None:
    """Copy a store from the disk past S3, with the server's own tool: PUT after PUT would take an hour."""
    done = store.with_name(f"{store.name}-uploaded")
    if done.exists():
        return
    weed = weed_binary()
    assert weed
    target = f"http://127.0.0.1:{server._ports['filer']}/buckets/{BUCKET}/"
    command = [weed, "filer.copy", f"-c={_FILES_AT_ONCE}", str(store), target]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done.touch()


# the table


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.root or temporary).resolve()
        config = seed_store(folder)
        for shards in options.shards:
            start = time.perf_counter()
            stand_in_store(config, str(folder / "seed"), folder / str(shards), shards)
            print(f"{shards:,} shards: made in {time.perf_counter() - start:.0f} s", flush=True)
        with ExitStack() as stack:
            if "s3" in options.places:
                names = ["seed", *map(str, options.shards)]
                stack.enter_context(s3_stores(folder, names))
            for place in options.places:
                root = str(folder) if place == "disk" else f"s3://{BUCKET}"
                for name in options.operations:
                    print_costs(f"{place}: {name}", measured(name, config, root, options.shards))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--places", choices=PLACES, nargs="+", default=PLACES)
    parser.add_argument("--operations", choices=OPERATIONS, nargs="+", default=list(OPERATIONS))
    parser.add_argument("--root", help="a folder that keeps the stores for the next run")
    return parser.parse_args()


def measured(name: str, config: AlmConfig, root: str, sizes: Sequence[int]) -> dict[int, Costs]:
    """Measure an operation on stores of these sizes, each in a process that begins as this one is."""
    costs = {}
    for shards in sizes:
        # forked: to import torch and Prefect again takes longer than most operations
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            stores = join_url(root, "seed"), join_url(root, str(shards))
            costs[shards] = pool.submit(measure, name, config, *stores).result()
    return costs


def print_costs(title: str, costs: Mapping[int, Costs]) -> None:
    print(title)
    before: tuple[int, Costs] | None = None
    for shards, cost in costs.items():
        growth = ""
        if before:
            ratios = zip(cost.numbers, before[1].numbers, strict=True)
            powers = [power(now, then, shards / before[0]) for now, then in ratios]
            growth = "grows as shards to the power {}, {}, {}".format(*powers)
        print(f"  {shards:8,} shards {cost.text}  {growth}", flush=True)
        before = shards, cost
    print(f"  of them: {cost.kinds}", flush=True)


def power(now: float, then: float, times: float) -> str:
    return f"{math.log(now / then) / math.log(times):.2f}" if now > 0 and then > 0 else "–"


if __name__ == "__main__":
    main()
