"""Reading caches into packed batches: `python -m benchmarks.read [--megabytes 32] [--root FOLDER]`.

Real text, tokenized with both sides' tokenizers and aligned, with random teacher scores; timed in turn in one run, from
the local disk: the stream that training reads, and a plain reader, example by example. Then the stream from an object
store that takes 30 ms a request; and beside training steps that take no processor time, as on a GPU.
"""

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from fsspec.implementations.memory import MemoryFileSystem

from alm_pipeline.alignment.ends import SideEdges
from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.stage import round_mantissa
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.examples import COLUMNS
from benchmarks.corpus import mixed_documents
from benchmarks.prepare import shards
from storage.columns import flatten_lists, list_array, list_rows
from storage.dataset import Dataset, read_aligned
from storage.schemas import ChunkKind, Kind
from tests.corpora import text_examples
from tests.real_tokenizers import tokenizer_folder

OBJECTIVE, TRAIN = ObjectiveConfig(), TrainConfig()
ROUND_TRIP = 0.03
RATIOS = ("plain / stream", "from 30 ms away / local", "debias both / end")
Caches = Mapping[str, Dataset]


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        caches = prepare(options, options.root or Path(scratch))
        tokens = caches["scores"].complete_manifest().counts["tokens"]
        stored = sum(dataset.complete_manifest().bytes for name, dataset in caches.items() if name != "examples")
        print(f"{tokens / 1e6:.1f} M teacher tokens, {stored / tokens:.1f} bytes each")
        remote = copied(caches, "slow://bucket")
        for caches_ in (caches, remote):
            epochs(caches_, 1)  # compiles, and warms the disk's cache
        rounds = [measure(caches, remote, tokens) for _ in range(options.rounds)]
        for name, ratios in zip(RATIOS, zip(*rounds, strict=True), strict=True):
            print(f"{name}: median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
        for step in (0.1, 0.5):
            share(caches, step)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=32)
    parser.add_argument("--teacher", default="gemma3")
    parser.add_argument("--student", default="llama3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root", type=Path, help="keeps the caches for the next run")
    return parser.parse_args()


def measure(caches: Caches, remote: Caches, tokens: int) -> tuple[float, float, float]:
    """The ratios of `RATIOS`, the first and last of processor time; three epochs of each stream."""
    local_cpu, local = epochs(caches, 3)
    _, away = epochs(remote, 3)
    end_cpu, _ = epochs(caches, 3, OBJECTIVE.model_copy(update={"debias": "end"}))
    started = time.process_time()
    for _ in plain_batches(caches):
        pass
    plain_cpu = time.process_time() - started
    rates = [tokens / seconds / 1e6 for seconds in (local_cpu, plain_cpu, local, away)]
    told = "{:.1f}, plain {:.2f} M tokens per second and core; {:.1f} M per second, from 30 ms away {:.1f}".format(
        *rates
    )
    print(told, flush=True)
    return plain_cpu / local_cpu, away / local, local_cpu / end_cpu


def epochs(caches: Caches, count: int, objective: ObjectiveConfig = OBJECTIVE) -> tuple[float, float]:
    """Seconds an epoch, of processors and on the clock, once warm: as far ahead at the end as at the beginning."""
    stream, read = BatchStream(caches, objective, TRAIN), [0.0, 0.0]
    with closing(iter(stream)) as batches:  # type: ignore[type-var]
        for end in (1, 1 + count):
            started = np.array([time.process_time(), time.perf_counter()])
            while stream.state_dict()["epoch"] < end:
                next(batches)
            read = (np.array([time.process_time(), time.perf_counter()]) - started) / count
    return float(read[0]), float(read[1])


def share(caches: Caches, step: float) -> None:
    """How much of a training step's time goes to waiting for the batch."""
    waited, batches = [], iter(BatchStream(caches, OBJECTIVE, TRAIN))
    next(batches)
    for _ in range(int(12 / step)):
        started = time.perf_counter()
        next(batches)
        waited.append(time.perf_counter() - started)
        time.sleep(step)
    mean, worst = sum(waited) / len(waited), max(waited)
    print(f"beside steps of {step} s: {mean / (mean + step):.2%} of the time, {worst * 1e3:.1f} ms at most")


def prepare(options: argparse.Namespace, root: Path) -> Caches:
    examples = text_examples(root, shards(mixed_documents(options.megabytes), 4 * 2**20), "benchmark")
    sides = []
    for name in (options.teacher, options.student):
        folder = str(tokenizer_folder(name))
        sides.append(tokens_dataset(examples, LoadedTokenizer(folder), None))
        tokenize(examples, sides[-1], LoadedTokenizer(folder), None)
    alignments = alignments_dataset(sides[0], sides[1], examples.label)
    views = (LoadedTokenizer(str(tokenizer_folder(name))).view for name in (options.teacher, options.student))
    align_datasets(sides[0], sides[1], alignments, SideEdges.of(*views))
    scores = Dataset(examples.root, Kind.TEACHER_SCORES, examples.label, {"tokens": sides[0].name})
    if not scores.manifest():
        for shard in range(len(sides[0].complete_manifest().shards)):
            write_scores(sides[0], scores, shard)
        scores.finish(len(sides[0].complete_manifest().shards))
    names = ("examples", "teacher_tokens", "student_tokens", "alignments", "scores")
    return dict(zip(names, (examples, *sides, alignments, scores), strict=True))


def write_scores(tokens: Dataset, scores: Dataset, shard: int) -> None:
    """Random ones: 2 nats a token; every second token likely at the end of a word, the others hardly."""
    table, generator = tokens.read_shard(shard, ["id", "token_ids"]), np.random.default_rng(shard)
    _, offsets = flatten_lists(table["token_ids"])
    logprobs = round_mantissa(-generator.exponential(2, offsets[-1]).astype(np.float32), 15)
    logprobs[offsets[:-1][np.diff(offsets) > 0]] = np.nan
    rare = generator.random(offsets[-1]) < 0.5
    boundary = round_mantissa(-generator.exponential(np.where(rare, 6, 0.3)).astype(np.float32), 15)
    columns = {"id": table["id"]} | {
        name: list_array(values, offsets, pa.float32())
        for name, values in (("logprobs", logprobs), ("boundary_logprobs", boundary))
    }
    scores.write_shard(shard, columns, {"tokens": int(offsets[-1])})


class SlowStore(MemoryFileSystem):  # type: ignore[misc]
    """An object store in memory, 30 ms away."""

    protocol = "slow"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's way: one for the whole process
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("slow://", "memory://", 1)))

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        time.sleep(ROUND_TRIP)
        return super().cat_file(path, *arguments, **options)


fsspec.register_implementation("slow", SlowStore)


def copied(caches: Caches, root: str) -> Caches:
    """The same datasets under another root."""
    store, made = fsspec.filesystem("slow"), {}
    for name, dataset in caches.items():
        made[name] = Dataset(root, dataset.kind, dataset.label, dataset.identity)
        for file in Path(dataset.url).iterdir():
            store.pipe_file(f"{made[name].url}/{file.name}", file.read_bytes())
    return made


# the alternative: every example a few arrays of its own, and chunks debiased at their ends, which is less work


class PlainExample:
    def __init__(self, ids: npt.NDArray[Any], *aligned: npt.NDArray[Any]) -> None:
        self.ids = ids
        self.logprobs, self.starts, self.ends = plain_merge(*aligned)


def plain_merge(teacher: Any, student: Any, kinds: Any, logprobs: Any, boundary: Any) -> tuple[Any, Any, Any]:
    teacher_ends, student_ends, compared = np.cumsum(teacher), np.cumsum(student), kinds != ChunkKind.UNPAIRED
    logprobs, boundary = np.append(logprobs, np.float32(0)), np.append(boundary, np.float32(0))
    closes = ~compared | (np.exp(boundary[np.maximum(teacher_ends - 1, 0)]) > OBJECTIVE.gamma)
    closes[:-1] |= ~compared[1:]
    last = np.flatnonzero(np.append(closes[:-1], True))
    first = np.concatenate([[0], last[:-1] + 1])
    starts = (student_ends - student)[first]
    likelihood = np.add.reduceat(logprobs.astype(np.float64), (teacher_ends - teacher)[first])
    likelihood = likelihood + boundary[np.maximum(teacher_ends[last] - 1, 0)]
    counts = compared[last] & np.isfinite(likelihood) & (starts > 0)
    return likelihood[counts].astype(np.float32), starts[counts], student_ends[last][counts]


def plain_examples(caches: Caches) -> Iterator[PlainExample]:
    for shard in range(len(caches["scores"].complete_manifest().shards)):
        tables = read_aligned(caches, shard, COLUMNS)
        splits = tables["examples"]["split"].to_pylist()
        names = [(name, column) for name in ("student_tokens", "alignments", "scores") for column in COLUMNS[name]]
        names.remove(("alignments", "ends"))
        columns = [list_rows(tables[name][column]) for name, column in names]
        for split, *arrays in zip(splits, *columns, strict=True):
            if split == "train" and len(arrays[1]):
                yield PlainExample(*arrays)


def plain_batches(caches: Caches) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """One epoch."""
    generator, buffer = random.Random(0), list[PlainExample]()
    count = TRAIN.batch_tokens // TRAIN.row_tokens
    rows: list[list[PlainExample]] = [[] for _ in range(count)]
    for example in itertools.chain(plain_examples(caches), [None] * TRAIN.shuffle_buffer):
        if example and len(buffer) < TRAIN.shuffle_buffer:
            buffer.append(example)
            continue
        if not buffer:
            break
        place = generator.randrange(len(buffer))
        buffer[place], chosen = example or buffer[-1], buffer[place]
        if example is None:
            buffer.pop()
        room = (row for row in rows if sum(len(one.ids) for one in row) + len(chosen.ids) <= TRAIN.row_tokens)
        row = next(room, None)
        if row is None:
            yield plain_batch([row for row in rows if row])
            rows = [[] for _ in range(count)]
            row = rows[0]
        row.append(chosen)
    yield plain_batch([row for row in rows if row])


def plain_batch(rows: list[list[PlainExample]]) -> dict[str, npt.NDArray[Any]]:
    width = max(sum(len(example.ids) for example in row) for row in rows)
    ids, positions, chunk_of = (np.full((len(rows), width), fill) for fill in (0, 0, -1))
    last, teacher, chunks = [], [], 0
    for number, row in enumerate(rows):
        at = 0
        for example in row:
            end = at + len(example.ids)
            ids[number, at:end], positions[number, at:end] = example.ids, np.arange(end - at)
            lengths = example.ends - example.starts
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            numbers = np.repeat(np.arange(chunks, chunks + len(lengths)), lengths)
            chunk_of[number, at:end][np.repeat(example.starts, lengths) + within] = numbers
            last.append(number * width + at + example.ends - 1)
            teacher.append(example.logprobs)
            chunks, at = chunks + len(lengths), end
    arrays = {"ids": ids, "positions": positions, "predicted": positions > 0, "chunk_of": chunk_of}
    return arrays | {"last": np.concatenate(last), "teacher": np.concatenate(teacher)}


if __name__ == "__main__":
    main()
