"""The stages as Prefect tasks: they call `alm_pipeline`, hold no logic of their own, and return their seconds.

Prefect's result cache is off: the datasets' own records hold what is done. A task takes the pipeline object, in which
the corpus is already hashed, and the `storage` parameter, for the credentials of a block.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from flows.artifacts import create_summary_artifacts
from flows.execution.inert_run import masked_errors
from flows.execution.retries import RETRYING
from flows.progress_artifacts import ProgressArtifacts
from flows.storage_block import storage_root
from storage.printed.records import make_output_inert

if TYPE_CHECKING:
    # torch and transformers are imported by the tasks that run, not by processes that deploy or display the flow
    from alm_pipeline.config import AlmConfig
    from alm_pipeline.pipeline import Pipeline
    from alm_pipeline.planning.plan import Plan
    from alm_pipeline.report import RunSummary


def stage_task(name: str, run_name: str | Callable[[], str] | None = None) -> Callable[[Callable[..., Any]], Any]:
    return task(name=name, task_run_name=run_name, cache_policy=NO_CACHE, **RETRYING)


def shards_run_name() -> str:
    """Name the run of a task on a group of shards."""
    from prefect.runtime import task_run

    shards, side = task_run.parameters["shards"], task_run.parameters.get("side")
    span = f"shard {shards[0]}" if len(shards) == 1 else f"{len(shards)} shards, {shards[0]} to {shards[-1]}"
    return f"{task_run.task_name} {side}: {span}" if side else f"{task_run.task_name}: {span}"


def log_stages_at_info() -> None:
    """Log the stages' lines at INFO unless another level is set: Prefect attaches its handler, but sets no level."""
    logger = logging.getLogger("alm_pipeline")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def run_with_progress(storage: str, stage: Callable[[], object]) -> float:
    """Run a stage as `run_timed` does, with progress artifacts; for a stage that is one task in the flow's process."""
    from alm_pipeline.runtime.progress import observed

    with observed(ProgressArtifacts().show):
        return run_timed(storage, stage)


def run_timed(storage: str, stage: Callable[[], object]) -> float:
    make_output_inert()
    log_stages_at_info()
    start = time.monotonic()
    with masked_errors():  # Prefect logs and stores their texts
        storage_root(storage)  # puts a block's settings to use in this process
        stage()
    return time.monotonic() - start


@contextmanager
def gpu_slots() -> Iterator[None]:
    """Hold one slot of the global concurrency limit `gpu`, where it exists, for each GPU of this machine."""
    from alm_pipeline.models.loading import all_devices

    gpus = sum(device.startswith("cuda") for device in all_devices())
    if not gpus:
        yield
        return
    with concurrency("gpu", occupy=gpus):
        yield


@stage_task("shard")
def shard(pipeline: "Pipeline", storage: str) -> float:
    """Cut the corpus into shards of examples."""
    return run_timed(storage, pipeline.shard)


@stage_task("student-tokenizer")
def train_tokenizer(pipeline: "Pipeline", storage: str) -> float:
    """Make the student's new tokenizer, if the configuration asks for one; check that a student can be made."""
    return run_timed(storage, pipeline.train_tokenizer)


@stage_task("tokenize", shards_run_name)
def tokenize_shards(
    pipeline: "Pipeline", storage: str, side: Literal["teacher", "student"], shards: Sequence[int]
) -> float:
    """Tokenize some shards of examples with the teacher's or the student's tokenizer."""
    return run_timed(storage, lambda: pipeline.tokenize(side, shards))


@stage_task("align", shards_run_name)
def align_shards(pipeline: "Pipeline", storage: str, shards: Sequence[int]) -> float:
    """Align some shards of both tokenizations by bytes."""
    return run_timed(storage, lambda: pipeline.align(shards))


@stage_task("manifests")
def publish_manifests(pipeline: "Pipeline", storage: str) -> float:
    """Write the manifests that mark both tokenizations and the alignments as complete."""
    return run_timed(storage, lambda: (pipeline.tokenize("teacher"), pipeline.tokenize("student"), pipeline.align()))


@stage_task("pair-biases")
def pair_biases(pipeline: "Pipeline", storage: str) -> float:
    """Measure the tokenization bias of token pairs, for the chunking `pair_bias`."""
    return run_timed(storage, pipeline.pair_biases)


@stage_task("score")
def score(pipeline: "Pipeline", storage: str, shards: Sequence[int] | None = None) -> float:
    """Let the teacher score its tokens, all of them or those of some shards."""
    with nullcontext() if pipeline.config.score.asks_other_machines else gpu_slots():
        return run_with_progress(storage, lambda: pipeline.score(shards))


@stage_task("train")
def train(pipeline: "Pipeline", storage: str) -> float:
    """Train, evaluate and save the student."""
    with gpu_slots():
        return run_with_progress(storage, pipeline.train)


@stage_task("publish")
def publish(pipeline: "Pipeline", storage: str) -> float:
    """Push the student to the Hub."""
    return run_timed(storage, pipeline.publish)


@task(name="report", cache_policy=NO_CACHE)
def report(
    pipeline: "Pipeline", seconds: dict[str, float], with_student: bool, plan: "Plan | None" = None
) -> dict[str, Any]:
    """Create the run's summary as artifacts, and return it as the flow's result, with what its plan was worth."""
    from alm_pipeline.planning.comparison import compare
    from alm_pipeline.report import summarize, summary_rows

    summary = summarize(pipeline, with_student=with_student)
    comparisons = compare(plan, summary, seconds) if plan else []
    rows = summary_rows(summary, seconds) + [comparison.line() for comparison in comparisons]
    _show_summary(pipeline.config, summary, rows)
    return summary.model_dump() | {"seconds": seconds, "planned": [each.model_dump() for each in comparisons]}


@task(name="report-finished", cache_policy=NO_CACHE)
def report_finished(config: "AlmConfig", summary: "RunSummary") -> dict[str, Any]:
    """Do as `report` does for a run that was finished before, without its pipeline."""
    from alm_pipeline.report import summary_rows

    get_run_logger().info("everything was there already")
    _show_summary(config, summary, summary_rows(summary, {}))
    return summary.model_dump() | {"seconds": {}, "planned": []}


def _show_summary(config: "AlmConfig", summary: "RunSummary", rows: Sequence[tuple[str, str]]) -> None:
    create_summary_artifacts(config, summary, rows)
    for what, value in [*rows, *summary.shown_places.items()]:
        get_run_logger().info("%s: %s", what, value)
