"""Reading a mixture against a single source: `python -m benchmarks.mixtures [--megabytes 32] [--root FOLDER]`.

The caches of `benchmarks.read`, as one source, and as eight of different weights (the same shards, of which each
source has an eighth): batches per token, timed in turn in one run, from the local disk.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.mixture import TrainingSource
from benchmarks.read import OBJECTIVE, TRAIN, arguments, prepare
from storage.dataset import Dataset

WEIGHTS = (0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02)
BATCHES = 150


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        whole = prepare(options, options.root or Path(scratch))
        parts = [part_of(whole, number, len(WEIGHTS), Path(scratch)) for number in range(len(WEIGHTS))]
        mixture = [
            TrainingSource(f"source-{number}", part, weight)
            for number, (part, weight) in enumerate(zip(parts, WEIGHTS, strict=True))
        ]
        for source in (whole, mixture):
            nanoseconds_per_token(source, BATCHES)  # compiles, and warms the disk's cache
        ratios = [measure(whole, mixture) for _ in range(options.rounds)]
        for name, values in zip(("processor time", "clock"), zip(*ratios, strict=True), strict=True):
            print(f"mixture / single, {name}: median {median(values):.2f}, {min(values):.2f} to {max(values):.2f}")


def measure(whole: Mapping[str, Dataset], mixture: Sequence[TrainingSource]) -> tuple[float, float]:
    """The ratios of processor time and of time on the clock, per token."""
    single, mixed = (nanoseconds_per_token(source, BATCHES) for source in (whole, mixture))
    print("single {:.1f} ns/token ({:.1f} on the clock), mixture {:.1f} ({:.1f})".format(*single, *mixed), flush=True)
    return mixed[0] / single[0], mixed[1] / single[1]


def nanoseconds_per_token(
    datasets: Mapping[str, Dataset] | Sequence[TrainingSource], batches: int
) -> tuple[float, float]:
    """Of processors and on the clock, over batches after the first, which waits for the shuffling buffer."""
    stream, tokens = BatchStream(datasets, OBJECTIVE, TRAIN), 0
    with closing(iter(stream)) as found:  # type: ignore[type-var]
        next(found)
        started = np.array([time.process_time(), time.perf_counter()])
        for batch in itertools.islice(found, batches):
            tokens += int(batch["predicted_N"].sum())
        seconds = np.array([time.process_time(), time.perf_counter()]) - started
    processor, clock = (seconds / tokens * 1e9).tolist()
    return processor, clock


def part_of(whole: Mapping[str, Dataset], number: int, count: int, scratch: Path) -> dict[str, Dataset]:
    """Return every `count`-th shard of the caches from `number` on, as datasets of their own."""
    return {role: copied(dataset, number, count, scratch) for role, dataset in whole.items()}


def copied(dataset: Dataset, number: int, count: int, scratch: Path) -> Dataset:
    identity = {**dataset.identity, "part": [number, count]}
    part = Dataset(str(scratch), dataset.kind, dataset.label, identity)
    records = dataset.complete_manifest().shards
    for index, shard in enumerate(range(number, len(records), count)):
        table = dataset.read_shard(shard)
        part.write_shard(index, {name: table[name] for name in table.column_names}, records[shard].counts)
    part.finish(len(range(number, len(records), count)))
    return part


if __name__ == "__main__":
    main()
