"""Reading a mixture against a single source: `python -m benchmarks.mixtures [--megabytes 32] [--root FOLDER]`.

The caches of `benchmarks.read`, as one source, and as eight of different weights (the same shards, of which each
source has an eighth): nanoseconds per token, timed in turn in one run, from the local disk.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
from torch import Tensor

from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.mixture import TrainingSource
from benchmarks.read import OBJECTIVE, TRAIN, arguments, prepare
from storage.dataset import Dataset

WEIGHTS = (0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02)
EPOCHS = 3
"""of the single source, in tokens"""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        whole = prepare(options, options.root or Path(scratch))
        parts = [part_of(whole, number, len(WEIGHTS), Path(scratch)) for number in range(len(WEIGHTS))]
        mixture = [
            TrainingSource(f"source-{number}", part, weight)
            for number, (part, weight) in enumerate(zip(parts, WEIGHTS, strict=True))
        ]
        tokens = EPOCHS * whole["student_tokens"].complete_manifest().counts["tokens"]
        for source in (whole, mixture):
            nanoseconds_per_token(source, tokens // 10)  # compiles, and warms the disk's cache
        ratios = [measure(whole, mixture, tokens) for _ in range(options.rounds)]
        for name, values in zip(("processor time", "clock"), zip(*ratios, strict=True), strict=True):
            print(f"mixture / single, {name}: median {median(values):.2f}, {min(values):.2f} to {max(values):.2f}")


def measure(whole: Mapping[str, Dataset], mixture: Sequence[TrainingSource], tokens: int) -> tuple[float, float]:
    """The ratios of processor time and of time on the clock, per token."""
    single, mixed = (nanoseconds_per_token(source, tokens) for source in (whole, mixture))
    print("single {:.1f} ns/token ({:.1f} on the clock), mixture {:.1f} ({:.1f})".format(*single, *mixed), flush=True)
    return mixed[0] / single[0], mixed[1] / single[1]


def nanoseconds_per_token(
    datasets: Mapping[str, Dataset] | Sequence[TrainingSource], tokens: int
) -> tuple[float, float]:
    """Of processors and on the clock, once warm: after a third as many tokens, which fill the shuffling buffers."""
    stream = BatchStream(datasets, OBJECTIVE, TRAIN)
    with closing(iter(stream)) as batches:  # type: ignore[type-var]
        read(batches, tokens // 3)
        started = np.array([time.process_time(), time.perf_counter()])
        count = read(batches, tokens)
        seconds = np.array([time.process_time(), time.perf_counter()]) - started
    processor, clock = (seconds / count * 1e9).tolist()
    return processor, clock


def read(batches: Iterator[Mapping[str, Tensor]], at_least: int) -> int:
    """Read batches of at least this number of tokens; return theirs."""
    tokens = 0
    while tokens < at_least:
        tokens += int(next(batches)["predicted_N"].sum())
    return tokens


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
