"""The flow `alm`: from a corpus to a student, its stages as tasks on groups of shards and as runs on a GPU pool.

A run that crashed or was cancelled is simply run again: the datasets' own records tell what is done.
"""

from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import flow
from prefect.states import Cancelled
from pydantic import Field

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.overrides import OVERRIDES, override
from alm_pipeline.config.recipes import recipe as find_recipe
from flows import tasks
from flows.alm_run import SCORE, TRAIN, Run
from flows.gpu_pool import GpuPool, PoolRunCancelled
from flows.runners import Runner, task_runner
from flows.storage_block import storage_root
from storage.errors import UserError
from storage.urls import absolute_url

if TYPE_CHECKING:
    from alm_pipeline.pipeline import Pipeline


Count = Annotated[int, Field(ge=1)]


@lru_cache(maxsize=1)
def _pipeline_of(config_json: str, root: str) -> "Pipeline":
    """One for all stages of a run: what the corpus and models are is hashed once."""
    from alm_pipeline.pipeline import Pipeline

    return Pipeline(AlmConfig.model_validate_json(config_json), root)


def _run_name() -> str:
    from prefect.runtime import flow_run

    config = _resolve(flow_run.parameters)
    only = flow_run.parameters["only"]
    return f"{only} {config.title}" if only else config.title


def _resolve(parameters: dict[str, Any]) -> AlmConfig:
    config: AlmConfig = parameters["config"] or find_recipe(parameters["recipe"])
    return override(config, **{name: parameters[name] for name in OVERRIDES})


@flow(name="alm", flow_run_name=_run_name, persist_result=False)
def alm(
    recipe: str = "transfer",
    config: AlmConfig | None = None,
    storage: str = "alm-data",
    until: Literal["scores", "student"] = "student",
    only: Literal["score", "train"] | None = None,
    corpus: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    tokenizer: str | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    gamma: float | None = None,
    temperature: float | None = None,
    settings: dict[str, Any] | None = None,
    runner: Runner = "threads",
    workers: Count = 2,
    address: str | None = None,
    group_bytes: Count = 64 * 2**20,
    gpu_pool: str | None = None,
    gpu_runs: Count = 1,
    shards: list[int] | None = None,
) -> dict[str, Any]:
    """Distil a student from a teacher, whatever their tokenizers.

    Args:
        recipe: A complete configuration by name (transfer, maths, bytes), for when `config` is not given.
        config: A complete configuration.
        storage: Where datasets and students go: a folder, any fsspec URL (s3://bucket/prefix), or block:NAME, a
            Prefect block RemoteFileSystem, which holds the credentials.
        until: `scores` stops once the caches are complete; `student` goes on to the student.
        only: One stage alone, on what the stages before it have written.
        corpus: URL of Parquet, JSONL or text files, taken whole, instead of the configuration's corpus.
        teacher: A folder, a hub name, or demo:NAME.
        student: A folder, a hub name, or demo:NAME.
        tokenizer: The tokenizer to put on the student: a folder, a hub name, or bytes.
        steps: Training steps.
        learning_rate: The peak learning rate.
        gamma: A chunk ends where the teacher's probability of a boundary token exceeds this.
        temperature: The objective's temperature.
        settings: Any other fields of the configuration, dotted: {"train.seed": 1}.
        runner: What tokenizes and aligns groups of shards: threads of this process, processes, dask or ray.
        workers: So many groups at a time; of a cluster at an address, as many as it has workers.
        address: An existing Dask or Ray cluster's, instead of one for the time of the run.
        group_bytes: A task's shards have about so many bytes of text, more where that would make over 500 tasks.
        gpu_pool: The work pool that scores and trains, through the deployments alm/score and alm/train; in place
            where there is none.
        gpu_runs: So many of the pool's runs score at a time.
        shards: For `only: score`, these shards alone.
    """
    chosen = _resolve(locals())
    _check_only(only, until, shards, gpu_pool)
    tasks.let_stages_speak()
    root = storage_root(storage)
    # a pool's machine, or a run in another folder, looks at the same place
    place = storage if root != storage else absolute_url(storage)
    if address:  # a cluster's workers run in folders of their own
        root = absolute_url(root)
    run = Run(
        _pipeline_of(chosen.model_dump_json(), root),
        storage,
        {"config": chosen.model_dump(mode="json"), "storage": place},
    )
    if only == "score":
        return {"seconds": {"score": tasks.score(run.pipeline, storage, shards)}}
    try:
        with GpuPool(gpu_pool, gpu_runs) if gpu_pool else nullcontext() as pool:
            if pool:
                for deployment in (SCORE, *([TRAIN] if until == "student" else [])):
                    pool.check(deployment)
            if not only:
                run.prepare(task_runner(runner, workers, address), workers, group_bytes, pool)
                run.score()
            if until == "student":
                run.train(pool)
        summary: dict[str, Any] = tasks.report(run.pipeline, run.seconds, until == "student")
        return summary
    except PoolRunCancelled as cancelled:
        return Cancelled(message=str(cancelled))  # type: ignore[return-value]  # a state that is returned is the run's


def _check_only(only: str | None, until: str, shards: list[int] | None, gpu_pool: str | None) -> None:
    if only == "train" and until != "student":
        raise UserError(f"until: {until} comes before `only: train`; leave it out")
    if shards is not None and only != "score":
        raise UserError("shards: is for `only: score`; leave it out")
    if only and gpu_pool:
        raise UserError(f"gpu_pool: a run of one stage works where it is; run the deployment alm/{only} on that pool")
