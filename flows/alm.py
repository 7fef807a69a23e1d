"""The flow `alm`, from a corpus to a student. Its stages are tasks on groups of shards, and runs on a GPU pool.

A run that crashed or was canceled is simply run again: the datasets' own records hold what is done.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Any

from prefect import get_run_logger
from prefect.states import Cancelled
from pydantic import Field

from alm_pipeline.config import AlmConfig, Number, Whole
from alm_pipeline.config.fields.places import with_absolute_places
from alm_pipeline.naming.names import run_title
from alm_pipeline.planning.finished import find_finished
from alm_pipeline.recipes.overrides import Overrides, configure, override, parse_overrides
from alm_pipeline.runtime.progress import expect_seconds
from flows import tasks
from flows.alm_run import AlmRun, Workers
from flows.execution.gpu_pool import GpuPool, PoolRunCancelled
from flows.execution.inert_run import inert_flow, inert_run, require_no_secrets
from flows.execution.runners import Runner, task_runner
from flows.plan_of_run import plan_run, record_run, remember_finished
from flows.run_name import run_name
from flows.stages import PHASES, POOL_DEPLOYMENTS, Only, Phase, Until
from flows.storage_block import storage_root
from storage.errors import UserError
from storage.urls import absolute_url

Count = Annotated[Whole, Field(ge=1)]


def _describe(parameters: Mapping[str, Any]) -> str:
    title, only = run_title(_resolve(parameters)), parameters["only"]
    return f"{only} {title}" if only else title


def _resolve(parameters: Mapping[str, Any]) -> AlmConfig:
    config: AlmConfig | None = parameters["config"]
    overrides = _overrides(parameters)
    return override(config, overrides) if config else configure(parameters["recipe"], overrides)


def _overrides(parameters: Mapping[str, Any]) -> Overrides:
    return parse_overrides({name: parameters[name] for name in Overrides.model_fields})


def _log_first_lines(config: AlmConfig, parameters: Mapping[str, Any]) -> None:
    from alm_pipeline.first_lines import first_lines

    recipe = None if parameters["config"] else parameters["recipe"]
    for line in first_lines(config, recipe, _overrides(parameters)):
        get_run_logger().info("%s", line)


@inert_flow("alm", run_name("alm", _describe))
def alm(
    recipe: str = "transfer",
    config: AlmConfig | None = None,
    storage: str = "alm-data",
    until: Until = "student",
    only: Only | None = None,
    corpus: str | list[str] | None = None,
    teacher: str | None = None,
    student: str | None = None,
    tokenizer: str | None = None,
    steps: Whole | None = None,
    learning_rate: Number | None = None,
    gamma: Number | None = None,
    temperature: Number | None = None,
    name: str | None = None,
    settings: dict[str, Any] | None = None,
    runner: Runner = "threads",
    workers: Count = 2,
    address: str | None = None,
    group_bytes: Count = 64 * 2**20,
    gpu_pool: str | None = None,
    gpu_runs: Count = 1,
    shards: list[Whole] | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Distill a teacher into a student, whatever their tokenizers.

    Args:
        recipe: The name of a recipe (distill, draft, transfer, published, maths, bytes), where `config` is not set.
        config: A complete configuration.
        storage: Where datasets and students are stored: a folder, any fsspec URL (s3://bucket/prefix), or block:NAME,
            the Prefect block RemoteFileSystem that holds the credentials.
        until: `scores` stops once the caches are complete; `student` goes on to the finished student.
        only: Run this stage alone, on what the earlier stages have written.
        corpus: URL of files to use as the corpus, in place of its source and name. Several (as NAME=URL) are a mixture.
        teacher: The teacher: a local folder, a name on the Hub, or demo:NAME.
        student: The student: a local folder, a name on the Hub, or demo:NAME.
        tokenizer: The student's new tokenizer: a local folder, a name on the Hub, or bytes.
        steps: The number of training steps.
        learning_rate: The peak learning rate.
        gamma: A chunk ends where the teacher's probability of a boundary token exceeds this.
        temperature: The temperature of the ALM objective.
        name: What the run and its student are called in lists and pictures.
        settings: Any other fields of the configuration, by dotted name: {"train.seed": 1}.
        runner: Where groups of shards are tokenized and aligned: threads of this process, processes, dask or ray.
        workers: The number of groups processed at a time; for a cluster at `address`, its number of workers.
        address: The address of an existing Dask or Ray cluster; by default the run starts its own.
        group_bytes: The bytes of text per task; more if a stage would otherwise have over 120 tasks.
        gpu_pool: The work pool that runs alm/score and alm/train; by default this run scores and trains itself.
        gpu_runs: The number of scoring runs on the GPU pool at a time.
        shards: With `only: score`, the shards to score; by default all.
        source: With `only: score`, the source of a mixture whose shards to score; by default all sources.
    """
    parameters = locals()
    with inert_run():
        chosen = _resolve(parameters)
        if address or gpu_pool:  # workers elsewhere, in folders of their own, read the same files
            chosen = with_absolute_places(chosen)
        _check_only(only, until, shards, gpu_pool)
        _check_source(chosen, source, only, shards)
        tasks.log_stages_at_info()
        if not only:
            _log_first_lines(chosen, parameters)
            if finished := find_finished(chosen, storage_root(storage), until):
                answer: dict[str, Any] = tasks.report_finished(chosen, finished)
                return answer
        run = _alm_run(chosen, storage, address)
        phases: Sequence[Phase] = (only,) if only else PHASES[until]
        if only == "score":
            run.pipeline.require_ready(phases)
            parts = run.pipeline.parts if source is None else [run.pipeline.part(source)]
            return {"seconds": {"score": sum(tasks.score(part, storage, shards) for part in parts)}}
        pool = GpuPool(gpu_pool, gpu_runs) if gpu_pool else None
        if pool:
            require_no_secrets(run.parameters, f"gpu_pool {gpu_pool}")
        run.pipeline.require_ready(phases, here=[phase for phase in phases if not pool or phase == "prepare"])
        result = _run_phases(
            run, phases, pool, lambda: Workers(task_runner(runner, workers, address), workers, group_bytes)
        )
        if not only and not pool:  # no machine of a pool is asked for the same run again
            remember_finished(run.pipeline, result, until)
        return result


def _alm_run(config: AlmConfig, storage: str, address: str | None) -> AlmRun:
    root = storage_root(storage)
    # runs on other machines or in other folders have to find the same place
    storage_elsewhere = storage if root != storage else absolute_url(storage)
    if address:  # a cluster's workers run in folders of their own
        root = absolute_url(root)
    from flows.execution.shared_pipeline import pipeline_of

    pipeline = pipeline_of(config.model_dump_json(), root)
    return AlmRun(pipeline, storage, {"config": config.model_dump(mode="json"), "storage": storage_elsewhere})


def _check_only(only: Only | None, until: Until, shards: list[int] | None, gpu_pool: str | None) -> None:
    if only and only not in PHASES[until]:
        raise UserError(f"until: {until} stops before `only: {only}`; leave `until` out")
    if shards is not None and only != "score":
        raise UserError("shards: needs `only: score`; set it, or leave `shards` out")
    if only and gpu_pool:
        raise UserError(
            f"gpu_pool: a run with `only: {only}` does its work itself; leave `gpu_pool` out, or run the deployment "
            f"{POOL_DEPLOYMENTS[only]} on that pool"
        )


def _check_source(config: AlmConfig, source: str | None, only: Only | None, shards: list[int] | None) -> None:
    names = [each.name for each in config.sources]
    if source is not None and only != "score":
        raise UserError("source: needs `only: score`; set it, or leave `source` out")
    if source is not None and source not in names:
        raise UserError(f"source: {source} is not a source of the corpus ({', '.join(names) or 'which is not a list'})")
    if shards is not None and names and source is None:
        raise UserError(f"shards: needs `source`, one of {', '.join(names)}: each source has shards of its own")


def _run_phases(
    run: AlmRun, phases: Sequence[Phase], pool: GpuPool | None, workers: Callable[[], Workers]
) -> dict[str, Any]:
    with_student = "train" in phases
    plan = plan_run(run.pipeline, with_student=with_student) if "prepare" in phases else None
    expect_seconds(plan.expected_seconds() if plan else {})
    try:
        with pool or nullcontext():
            if pool:
                _check_deployments(pool, phases)
            if "prepare" in phases:
                run.prepare(workers(), pool)
            if "train" in phases and "prepare" in phases:
                run.pipeline.require_examples()
            if "score" in phases:
                run.score()
            if "train" in phases:
                run.train(pool)
        if not pool:
            record_run(run.pipeline, plan, run.seconds)
        summary: dict[str, Any] = tasks.report(run.pipeline, run.seconds, with_student, plan)
        return summary
    except PoolRunCancelled as cancelled:
        return Cancelled(message=str(cancelled))  # type: ignore[return-value]  # a state that is returned is the run's


def _check_deployments(pool: GpuPool, phases: Sequence[Phase]) -> None:
    for phase, deployment in POOL_DEPLOYMENTS.items():
        if phase in phases:
            pool.check(deployment)
