"""The flows `on-policy` and `write`: rounds in which the student writes, and texts that a model writes to train on.

A round's stages after the writing are a run of the flow `alm`, with all of its tasks and artifacts.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import Field

from alm_pipeline.config import AlmConfig, Whole
from alm_pipeline.config.fields.places import with_absolute_places
from alm_pipeline.preflight.phases import ALL_PHASES
from alm_pipeline.recipes.overrides import configure, override, parse_overrides
from flows.alm import alm
from flows.execution.inert_run import inert_flow, inert_run
from flows.run_name import run_name
from flows.storage_block import storage_root
from flows.tasks import gpu_slots, log_stages_at_info, run_with_progress, stage_task
from storage.errors import UserError
from storage.printed.counts import counts_in_words
from storage.printed.inert import markdown, one_line
from storage.printed.secrets import masked
from storage.urls import is_local, join_url, open_filesystem, read_bytes

if TYPE_CHECKING:
    from alm_pipeline.rounds.on_policy import OnPolicy
    from alm_pipeline.rounds.writing import Writing
    from storage.dataset import Manifest

Count = Annotated[Whole, Field(ge=1)]

_on_policy_name = run_name("on-policy", lambda parameters: f"on-policy {_title(parameters)}")
_write_name = run_name("write", lambda parameters: f"write {_title(parameters)}, by {parameters['by']}")


def _title(parameters: Mapping[str, Any]) -> str:
    return _resolve(parameters["recipe"], parameters["config"], parameters["settings"]).title


def _resolve(recipe: str, config: AlmConfig | None, settings: dict[str, Any] | None) -> AlmConfig:
    overrides = parse_overrides({"settings": settings})
    return override(config, overrides) if config else configure(recipe, overrides)


@stage_task("write-round", lambda: _round_name())
def write_round(rounds: "OnPolicy", storage: str, number: int) -> float:
    """Let the student of the round before write."""
    with gpu_slots():
        return run_with_progress(storage, lambda: rounds.write(number))


def _round_name() -> str:
    from prefect.runtime import task_run

    return f"write, round {task_run.parameters['number']}"


@stage_task("measure-rounds")
def measure_rounds(rounds: "OnPolicy", storage: str) -> float:
    """Measure every student on what it writes, and write the results."""
    with gpu_slots():
        return run_with_progress(storage, rounds.report)


@inert_flow("on-policy", _on_policy_name)
def on_policy(
    recipe: str = "distill",
    config: AlmConfig | None = None,
    storage: str = "alm-data",
    settings: dict[str, Any] | None = None,
    gpu_pool: str | None = None,
    gpu_runs: Count = 1,
) -> dict[str, Any]:
    """Train a student in on-policy rounds: it writes, the teacher scores what it wrote, and it is trained on that.

    Args:
        recipe: The name of a recipe (distill, transfer, published, maths, bytes), used where `config` is not set.
        config: A complete configuration, with `rounds`.
        storage: Where datasets and students are stored: a folder, any fsspec URL (s3://bucket/prefix), or block:NAME.
        settings: Any fields of the configuration, by dotted name: {"rounds.count": 5}.
        gpu_pool: The work pool that runs alm/score and alm/train, on a storage on a disk that its machines share; by
            default this run does all. This run writes.
        gpu_runs: The number of scoring runs on the GPU pool at a time.
    """
    with inert_run():
        from alm_pipeline.rounds.on_policy import OnPolicy

        chosen = _resolve(recipe, config, settings)
        if gpu_pool:
            chosen = with_absolute_places(chosen)
        log_stages_at_info()
        root = storage_root(storage)
        _require_shared(gpu_pool, root)
        rounds = OnPolicy(chosen, root)
        if not rounds.finished():
            _run_rounds(rounds, storage, {"gpu_pool": gpu_pool, "gpu_runs": gpu_runs})
        results = rounds.report().results
        _show(rounds.folder.url, results["measures"])
        return {"rounds": rounds.folder.url, **results}


def _require_shared(gpu_pool: str | None, root: str) -> None:
    """Raise UserError if machines of a pool would look for a round's student in this machine's cache."""
    if gpu_pool and not is_local(open_filesystem(root)[0]):
        raise UserError(
            f"gpu_pool {gpu_pool}: a round goes on from the student's folder, which the pool's machines must have "
            f"under the same path: use a storage on a disk that all share instead of {masked(root)}, or leave it out"
        )


def _run_rounds(rounds: "OnPolicy", storage: str, pool: dict[str, Any]) -> None:
    rounds.require_ready(here=("prepare",) if pool["gpu_pool"] else ALL_PHASES)
    if rounds.rounds.start == "student":
        alm(config=rounds.start.config, storage=storage, **pool)
    else:
        rounds.prepare()
    for number in range(1, rounds.count + 1):
        write_round(rounds, storage, number)
        alm(config=rounds.round_config(number), storage=storage, **pool)
    write_round(rounds, storage, rounds.count + 1)
    measure_rounds(rounds, storage)


def _show(url: str, measures: Sequence[Mapping[str, Any]]) -> None:
    rows = [{name: _cell(value) for name, value in row.items()} for row in measures]
    create_table_artifact(rows, key="alm-rounds", description=f"On-policy rounds: {markdown(url)}")
    picture = read_bytes(join_url(url, "rounds.png"))
    parts = [f"# {markdown(url)}"]
    if picture is not None:
        parts.append(f"![rounds](data:image/png;base64,{base64.b64encode(picture).decode()})")
    create_markdown_artifact("\n\n".join(parts), key="alm-rounds-report", description=markdown(url))
    get_run_logger().info("%s: rounds.json, rounds.parquet, units.parquet and rounds.png", url)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else one_line(value)


@stage_task("write-texts")
def write_texts(writing: "Writing", storage: str) -> float:
    """Let the chosen model write."""
    with gpu_slots():
        return run_with_progress(storage, writing.write)


@inert_flow("write", _write_name)
def write(
    by: str = "teacher",
    recipe: str = "distill",
    config: AlmConfig | None = None,
    storage: str = "alm-data",
    model: str | None = None,
    revision: str | None = None,
    prompts: Count | None = None,
    held_out: Count | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Let a model write on a corpus's prompts: examples to train on, such as for sequence-level distillation.

    Args:
        by: Who writes: teacher, student (the model that it begins with), or the URL of an OpenAI-compatible server.
        recipe: The name of a recipe (distill, transfer, published, maths, bytes), used where `config` is not set.
        config: A complete configuration; `rounds.sampling` and `rounds.prompts` say how it writes, and on what.
        storage: Where datasets are stored: a folder, any fsspec URL (s3://bucket/prefix), or block:NAME.
        model: With a server: the model's name there.
        revision: With a server: what tells another state of a model of this name apart.
        prompts: How many of the examples that are trained on give a prompt; by default all.
        held_out: How many held-out examples give one; by default all.
        settings: Any fields of the configuration, by dotted name: {"rounds.sampling.temperature": 0.7}.
    """
    with inert_run():
        from alm_pipeline.rounds.writing import WriterChoice, Writing

        chosen = _resolve(recipe, config, settings)
        log_stages_at_info()
        choice = WriterChoice(by, model, revision)
        writing = Writing(chosen, storage_root(storage), choice, prompts, held_out)
        write_texts(writing, storage)
        found = {dataset.url: dataset.complete_manifest() for dataset in writing.datasets}
        for url, manifest in found.items():
            get_run_logger().info("%s: %s", url, written_line(manifest))
        return {"examples": [{"url": url, **written_counts(manifest)} for url, manifest in found.items()]}


def written_counts(manifest: "Manifest") -> dict[str, Any]:
    """Return what was written, as plain values: texts, tokens, and what was left out by reason."""
    names = ("prompt_tokens", "written_tokens", "truncated_examples", "held_out_examples")
    counts = {name: manifest.counts.get(name, 0) for name in names}
    return {"texts": manifest.rows, **counts, "left_out": dict(manifest.dropped)}


def written_line(manifest: "Manifest") -> str:
    """Return what was written in one line."""
    counts = written_counts(manifest)
    left_out = counts_in_words(counts["left_out"], "")
    return (
        f"{counts['texts']:,} texts ({counts['held_out_examples']:,} held out, {counts['truncated_examples']:,} cut at "
        f"the most tokens), {counts['prompt_tokens']:,} tokens read and {counts['written_tokens']:,} written"
        + (f"; left out: {left_out}" if left_out else "")
    )
