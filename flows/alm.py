"""The flow `alm`: every stage as a task, from a corpus to a student.

Tasks call `alm_pipeline` and hold no logic of their own. Prefect's result cache is off everywhere: the datasets' own
records tell what is done, so a run that crashed or was cancelled is simply run again.
"""

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, TypeVar

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from alm_pipeline.config import AlmConfig
from alm_pipeline.overrides import OVERRIDES, override
from alm_pipeline.recipes import recipe as find_recipe
from flows.storage_block import storage_root
from storage.errors import UserError

Returned = TypeVar("Returned")


def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Not what a user has to mend: it would fail again."""
    try:
        state.result()
    except UserError:
        return False
    except Exception:
        return True
    return False


def stage_task(name: str) -> Callable[[Callable[..., Returned]], Any]:
    return task(name=name, cache_policy=NO_CACHE, retries=2, retry_delay_seconds=10, retry_condition_fn=_worth_retrying)


def _pipeline(config: AlmConfig, storage: str) -> Any:
    """One for all tasks of a process: what the corpus and models are is hashed once."""
    return _pipeline_of(config.model_dump_json(), storage)


@lru_cache(maxsize=1)
def _pipeline_of(config_json: str, storage: str) -> Any:
    # torch and transformers are imported by the tasks that run, not by whoever deploys or looks at the flow
    from alm_pipeline.pipeline import Pipeline

    return Pipeline(AlmConfig.model_validate_json(config_json), storage_root(storage))


def _timed(stage: Callable[[], object]) -> float:
    start = time.monotonic()
    stage()
    return time.monotonic() - start


@stage_task("shard")
def shard(config: AlmConfig, storage: str) -> float:
    """Cut the corpus into examples, in shards. Tasks return their seconds."""
    return _timed(_pipeline(config, storage).shard)


@stage_task("train-tokenizer")
def train_tokenizer(config: AlmConfig, storage: str) -> float:
    """Make the student's new tokenizer, by training or of bytes, if the configuration asks for one."""
    return _timed(_pipeline(config, storage).train_tokenizer)


@stage_task("tokenize")
def tokenize(config: AlmConfig, storage: str, side: Literal["teacher", "student"]) -> float:
    """Encode the examples with one side's tokenizer."""
    pipeline = _pipeline(config, storage)
    return _timed(lambda: pipeline.tokenize(side))


@stage_task("align")
def align(config: AlmConfig, storage: str) -> float:
    """Align both tokenizations by bytes."""
    return _timed(_pipeline(config, storage).align)


@stage_task("pair-biases")
def pair_biases(config: AlmConfig, storage: str) -> float:
    """Measure the tokenization bias of token pairs, for the chunking that asks for it."""
    return _timed(_pipeline(config, storage).pair_biases)


@stage_task("score")
def score(config: AlmConfig, storage: str) -> float:
    """Let the teacher score its tokens."""
    return _timed(_pipeline(config, storage).score)


@stage_task("distil")
def distil(config: AlmConfig, storage: str) -> float:
    """Train, evaluate and save the student."""
    return _timed(_pipeline(config, storage).distil)


@stage_task("publish")
def publish(config: AlmConfig, storage: str) -> float:
    """Push the student to the hub."""
    return _timed(_pipeline(config, storage).publish)


@task(name="report", cache_policy=NO_CACHE)
def report(config: AlmConfig, storage: str, seconds: dict[str, float], with_student: bool) -> dict[str, Any]:
    """The run's summary, as a table artifact and as the flow's result."""
    from alm_pipeline.report import summarise, summary_rows

    summary = summarise(_pipeline(config, storage), with_student=with_student)
    rows = [*summary_rows(summary, seconds), *summary.places.items()]
    create_table_artifact([{"what": what, "value": value} for what, value in rows], key="alm-summary")
    for what, value in rows:
        get_run_logger().info("%s: %s", what, value)
    return summary.model_dump() | {"seconds": seconds}


def _run_name() -> str:
    from prefect.runtime import flow_run

    config = _resolve(flow_run.parameters)
    return f"{config.corpus.name}: {config.teacher} to {config.student.model}"


def _resolve(parameters: dict[str, Any]) -> AlmConfig:
    config: AlmConfig = parameters["config"] or find_recipe(parameters["recipe"])
    return override(config, **{name: parameters[name] for name in OVERRIDES})


@flow(
    name="alm",
    flow_run_name=_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]
    persist_result=False,
)
def alm(
    recipe: str = "transfer",
    config: AlmConfig | None = None,
    storage: str = "alm-data",
    until: Literal["scores", "student"] = "student",
    corpus: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    tokenizer: str | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    gamma: float | None = None,
    temperature: float | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Distil a student from a teacher, whatever their tokenizers.

    Args:
        recipe: A complete configuration by name (transfer, maths, bytes), for when `config` is not given.
        config: A complete configuration.
        storage: Where datasets and students go: a folder, any fsspec URL (s3://bucket/prefix), or block:NAME, a
            Prefect block RemoteFileSystem, which holds the credentials.
        until: `scores` stops once the caches are complete; `student` goes on to the student.
        corpus: URL of Parquet, JSONL or text files, taken whole, instead of the configuration's corpus.
        teacher: A folder, a hub name, or demo:NAME.
        student: A folder, a hub name, or demo:NAME.
        tokenizer: The tokenizer to put on the student: a folder, a hub name, or bytes.
        steps: Training steps.
        learning_rate: The peak learning rate.
        gamma: A chunk ends where the teacher's probability of a boundary token exceeds this.
        temperature: The objective's temperature.
        settings: Any other fields of the configuration, dotted: {"train.seed": 1}.
    """
    chosen = _resolve(locals())
    _let_stages_speak()
    seconds = _cache(chosen, storage)
    if until == "student":
        seconds["distil"] = distil(chosen, storage)
        if chosen.publish:
            seconds["publish"] = publish(chosen, storage)
    result: dict[str, Any] = report(chosen, storage, seconds, until == "student")
    return result


def _let_stages_speak() -> None:
    """The stages' lines at INFO, where nobody has set another level: Prefect attaches its handler, but no level."""
    logger = logging.getLogger("alm_pipeline")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _cache(config: AlmConfig, storage: str) -> dict[str, float]:
    seconds = {"shard": shard(config, storage)}
    seconds["train tokenizer"] = train_tokenizer(config, storage)
    sides = {side: tokenize.submit(config, storage, side) for side in ("teacher", "student")}
    seconds |= {f"tokenize {side}": future.result() for side, future in sides.items()}
    seconds["align"] = align(config, storage)
    if config.objective.chunking == "pair_bias":
        seconds["pair biases"] = pair_biases(config, storage)
    seconds["score"] = score(config, storage)
    return seconds
