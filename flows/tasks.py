"""The stages as Prefect tasks: they call `alm_pipeline` and hold no logic of their own, and return their seconds.

Prefect's result cache is off: the datasets' own records tell what is done. A task takes the pipeline itself, in which
what the corpus is has been hashed once, and the storage it came from, for the credentials of a block.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from flows.artifacts import show_summary
from flows.progress_artifacts import ProgressArtifacts
from flows.retries import RETRYING
from flows.storage_block import storage_root

if TYPE_CHECKING:
    # torch and transformers are imported by the tasks that run, not by whoever deploys or looks at the flow
    from alm_pipeline.pipeline import Pipeline


def stage_task(name: str, run_name: str | Callable[[], str] | None = None) -> Callable[[Callable[..., Any]], Any]:
    return task(name=name, task_run_name=run_name, cache_policy=NO_CACHE, **RETRYING)


def shards_run_name() -> str:
    """Of a task on a group of shards."""
    from prefect.runtime import task_run

    shards, side = task_run.parameters["shards"], task_run.parameters.get("side")
    span = f"shard {shards[0]}" if len(shards) == 1 else f"{len(shards)} shards, {shards[0]} to {shards[-1]}"
    return f"{task_run.task_name} {side}: {span}" if side else f"{task_run.task_name}: {span}"


def let_stages_speak() -> None:
    """The stages' lines at INFO, where nobody has set another level: Prefect attaches its handler, but no level."""
    logger = logging.getLogger("alm_pipeline")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _shown(storage: str, stage: Callable[[], object]) -> float:
    """As `_timed`, with progress artifacts: of a stage that is a single task, in the flow's own process."""
    from alm_pipeline.runtime.progress import observed

    with observed(ProgressArtifacts().show):
        return _timed(storage, stage)


def _timed(storage: str, stage: Callable[[], object]) -> float:
    storage_root(storage)  # a block's settings, in whichever process this is
    let_stages_speak()
    start = time.monotonic()
    stage()
    return time.monotonic() - start


@contextmanager
def gpu_slots() -> Iterator[None]:
    """As many slots of the global concurrency limit `gpu`, where there is one, as this machine has GPUs."""
    from alm_pipeline.models.loading import all_devices

    gpus = sum(device.startswith("cuda") for device in all_devices())
    if not gpus:
        yield
        return
    with concurrency("gpu", occupy=gpus):
        yield


@stage_task("shard")
def shard(pipeline: "Pipeline", storage: str) -> float:
    """Cut the corpus into examples, in shards."""
    return _timed(storage, pipeline.shard)


@stage_task("train-tokenizer")
def train_tokenizer(pipeline: "Pipeline", storage: str) -> float:
    """Train the student's new tokenizer, if there is one to train."""
    return _timed(storage, pipeline.train_tokenizer)


@stage_task("tokenize", shards_run_name)
def tokenize_shards(
    pipeline: "Pipeline", storage: str, side: Literal["teacher", "student"], shards: Sequence[int]
) -> float:
    """Encode some shards of the examples with one side's tokenizer."""
    return _timed(storage, lambda: pipeline.tokenize(side, shards))


@stage_task("align", shards_run_name)
def align_shards(pipeline: "Pipeline", storage: str, shards: Sequence[int]) -> float:
    """Align some shards of both tokenizations by bytes."""
    return _timed(storage, lambda: pipeline.align(shards))


@stage_task("manifests")
def publish_manifests(pipeline: "Pipeline", storage: str) -> float:
    """Say that both tokenizations and the alignments are complete."""
    return _timed(storage, lambda: (pipeline.tokenize("teacher"), pipeline.tokenize("student"), pipeline.align()))


@stage_task("pair-biases")
def pair_biases(pipeline: "Pipeline", storage: str) -> float:
    """Measure the tokenization bias of token pairs, for the chunking that asks for it."""
    return _timed(storage, pipeline.pair_biases)


@stage_task("score")
def score(pipeline: "Pipeline", storage: str, shards: Sequence[int] | None = None) -> float:
    """Let the teacher score its tokens, all or those of some shards."""
    with gpu_slots():
        return _shown(storage, lambda: pipeline.score(shards))


@stage_task("train")
def train(pipeline: "Pipeline", storage: str) -> float:
    """Train, evaluate and save the student."""
    with gpu_slots():
        return _shown(storage, pipeline.train)


@stage_task("publish")
def publish(pipeline: "Pipeline", storage: str) -> float:
    """Push the student to the hub."""
    return _timed(storage, pipeline.publish)


@task(name="report", cache_policy=NO_CACHE)
def report(pipeline: "Pipeline", seconds: dict[str, float], with_student: bool) -> dict[str, Any]:
    """The run's summary, as artifacts and as the flow's result."""
    from alm_pipeline.report import summarize, summary_rows

    summary = summarize(pipeline, with_student=with_student)
    rows = summary_rows(summary, seconds)
    show_summary(pipeline, summary, rows)
    for what, value in [*rows, *summary.places.items()]:
        get_run_logger().info("%s: %s", what, value)
    return summary.model_dump() | {"seconds": seconds}
