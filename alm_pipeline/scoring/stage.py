"""The stage TOKENS → TEACHER SCORES: two numbers per token, whatever the size of the vocabulary.

Each device has its own copy of the teacher and scores the next free shard; several GPUs have a process each. A shard is
scored on one device, so the result does not depend on the number of devices. Two threads take turns on a GPU: while it
scores for one of them, the other writes a shard and reads the next. Another engine than transformers decides itself how
it batches rows, so its numbers differ by rounding from run to run; the first to publish a shard wins.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event, Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.loaded_files import check_same
from alm_pipeline.models.loading import all_devices
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.runtime.progress import Advance, track
from alm_pipeline.scoring.processes import score_in_processes, shared_out
from alm_pipeline.scoring.scorer import Scorer, TokenScores
from alm_pipeline.scoring.served_scorer import ServedScorer, open_served_scorer
from storage.columns import join_rows, list_rows
from storage.dataset import Dataset, Manifest
from storage.schemas import Kind, TokenKind

STAGE_VERSION = 4
_SCORED_BY = "tokens by "
"""in a record, before the engine besides transformers that scored the shard"""
AnyScorer = Scorer | ServedScorer
_THREADS = {"cuda": 2}
"""of a device, by type; a processor that scores has no time for a second one"""
Floats = npt.NDArray[np.float32]


def scores_dataset(tokens: Dataset, teacher: ModelReference, config: ScoreConfig) -> Dataset:
    """Return the dataset of the teacher's scores of these tokens, whether or not it is written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "tokens": tokens.name,
        "teacher": teacher.identity,
        "config": config.identity(),
    }
    return Dataset(tokens.root, Kind.TEACHER_SCORES, tokens.label, identity)


def score(
    tokens: Dataset,
    scores: Dataset,
    teacher: ModelReference,
    config: ScoreConfig,
    shards: Sequence[int] | None = None,
) -> Manifest | None:
    """Score every shard that is not scored yet, and return the manifest.

    With `shards`, only these are scored, only their tokens must exist, and None is returned. After that, a call without
    `shards` writes the manifest.
    """
    if manifest := scores.manifest():
        return manifest
    check_same(teacher.name, teacher.identity, scores.identity["teacher"], scores.name)
    requested = range(len(tokens.complete_manifest().shards)) if shards is None else shards
    if missing := scores.missing(requested):
        records = tokens.known_records(requested)
        sizes = {shard: record.counts["tokens"] for shard, record in zip(requested, records, strict=True)}
        if devices := _process_devices(config, len(missing)):
            _score_in_processes(tokens, scores, teacher, config, sizes, missing, devices)
        else:
            with _scorers(teacher, config, len(missing)) as scorers:
                _score_missing(tokens, scores, teacher, scorers, config, sizes, missing)
    return _finish(scores, len(requested)) if shards is None else None


def _finish(scores: Dataset, shards: int) -> Manifest:
    """Publish the manifest. Its provenance lists the engines besides transformers, which the records name."""
    records = scores.required_records(range(shards))
    counted = sorted({name for record in records for name in record.counts if name.startswith(_SCORED_BY)})
    if counted:
        engines = [name.removeprefix(_SCORED_BY) for name in counted]
        scores = replace(scores, provenance={**scores.provenance, "engines": engines})
    return scores.publish_manifest(records)


def _score_missing(
    tokens: Dataset,
    scores: Dataset,
    teacher: ModelReference,
    scorers: Sequence[AnyScorer],
    config: ScoreConfig,
    sizes: Mapping[int, int],
    missing: Sequence[int],
) -> None:
    """Score the missing shards. `sizes` is the number of tokens of every requested shard."""
    total = sum(sizes.values())
    done = total - sum(sizes[shard] for shard in missing)
    with track("score", total, "tokens", done) as advance:

        def score_next(scorer: AnyScorer, shard: int, advance: Advance) -> None:
            if scores.record(shard):  # another run scored it meanwhile
                advance(sizes[shard])
            else:
                _score_shard(tokens, scores, shard, teacher, scorer, config, advance)

        _share(scorers, missing, score_next, advance)


@contextmanager
def _scorers(teacher: ModelReference, config: ScoreConfig, shards: int) -> Iterator[Sequence[AnyScorer]]:
    """Load one scorer per device, but not more than there are shards; or open that of another engine."""
    if config.engine != "transformers":
        with open_served_scorer(teacher, config) as served:
            yield [served]
        return
    yield [Scorer.load(teacher, config, device) for device in _devices(config)[:shards]]


def _devices(config: ScoreConfig) -> list[str | None]:
    """Return the devices that each get a copy of the teacher; None where accelerate spreads one."""
    return [None] if config.device_map else list(config.devices or all_devices())


def _process_devices(config: ScoreConfig, shards: int) -> list[str]:
    """Return the devices whose threads would wait for each other: several GPUs, while work is launched on them."""
    if config.engine != "transformers":
        return []
    devices = [device for device in _devices(config)[:shards] if device]
    return devices if _need_processes(devices) else []


def _need_processes(devices: Sequence[str]) -> bool:
    return len(set(devices)) > 1 and all(device.startswith("cuda") for device in devices)


def _score_in_processes(
    tokens: Dataset,
    scores: Dataset,
    teacher: ModelReference,
    config: ScoreConfig,
    sizes: Mapping[int, int],
    missing: Sequence[int],
    devices: Sequence[str],
) -> None:
    """Score the missing shards, in a process per device. `sizes` is the number of tokens of every requested shard."""
    total = sum(sizes.values())
    done = total - sum(sizes[shard] for shard in missing)
    parts = dict(zip(devices, shared_out(sizes, missing, len(devices)), strict=True))
    with track("score", total, "tokens", done) as advance:
        score_in_processes(tokens, scores, teacher, config, parts, advance)


class _Stopped(Exception):
    """Another scorer failed."""


def _share(
    scorers: Sequence[AnyScorer],
    shards: Sequence[int],
    work: Callable[[AnyScorer, int, Advance], None],
    advance: Advance,
) -> None:
    """Let each scorer take the next shard whenever it is free. If one fails, the others stop after their batch."""
    waiting, lock, stopped = deque(shards), Lock(), Event()

    def report(units: float, note: str = "") -> None:
        if stopped.is_set():
            raise _Stopped
        with lock:
            advance(units, note)

    def next_shard() -> int | None:
        with lock:
            return waiting.popleft() if waiting and not stopped.is_set() else None

    def work_on(scorer: AnyScorer) -> None:
        try:
            while (shard := next_shard()) is not None:
                work(scorer, shard, report)
        except _Stopped:
            pass
        except BaseException:
            stopped.set()
            raise

    workers = [scorer for scorer in scorers for _ in range(_threads(scorer))]
    with ThreadPoolExecutor(max(1, len(workers))) as pool:
        running = [pool.submit(work_on, scorer) for scorer in workers[1:]]
        try:
            for scorer in workers[:1]:  # in this thread, so that it reacts to an interrupt at once
                work_on(scorer)
            for future in running:
                future.result()
        finally:
            stopped.set()


def _threads(scorer: AnyScorer) -> int:
    """Return the number of threads that take turns on a scorer."""
    return scorer.threads if isinstance(scorer, ServedScorer) else _THREADS.get(scorer.device.type, 1)


def _score_shard(
    tokens: Dataset,
    scores: Dataset,
    shard: int,
    teacher: ModelReference,
    scorer: AnyScorer,
    config: ScoreConfig,
    advance: Advance,
) -> None:
    table = tokens.read_shard(shard, ["id", "token_ids", "kinds"])
    examples = list_rows(table["token_ids"])
    begins = [len(kinds) > 0 and kinds[0] == TokenKind.BEGIN_OF_TEXT for kinds in list_rows(table["kinds"])]
    shard_scores = scorer.score(examples, advance, begins=begins, names=table["id"].to_pylist())
    columns = {"id": table["id"], **_columns(shard_scores, config)}
    teacher.check_unchanged()
    tokens_scored = sum(map(len, examples))
    by_engine = {_SCORED_BY + scorer.description: tokens_scored} if isinstance(scorer, ServedScorer) else {}
    scores.write_shard(shard, columns, counts={"tokens": tokens_scored, **by_engine})


def _columns(scores: Sequence[TokenScores], config: ScoreConfig) -> dict[str, Any]:
    """Return the columns of a dataset of scores, without the ids."""
    names = {"logprobs": pa.float32(), "boundary_logprobs": pa.float32()}
    if config.top_k:
        names |= {"top_ids": pa.int32(), "top_logprobs": pa.float32()}
    columns: dict[str, Any] = {}
    for name, type_ in names.items():
        rows = [getattr(example, name).reshape(-1) for example in scores]
        if pa.types.is_floating(type_):
            rows = [round_mantissa(row, config.mantissa_bits) for row in rows]
        columns[name] = join_rows(rows, type_)
    return columns


def round_mantissa(values: Floats, bits: int) -> Floats:
    """Round to the nearest float32 with `bits` mantissa bits; the relative error is at most 2^-(bits + 1).

    A teacher in bfloat16 is itself off by 2^-9, and compressed zeros at the end take almost no space.
    """
    dropped = 23 - bits
    if not dropped:
        return values
    as_integers = values.view(np.uint32)
    # the carry out of a mantissa of ones goes into the exponent, as rounding up requires
    rounded = (as_integers + np.uint32(1 << (dropped - 1))) & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)
