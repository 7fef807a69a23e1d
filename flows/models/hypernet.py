"""The flow `hypernet`: trains a network that gives a model any tokenizer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact

from alm_pipeline.hypernetwork.settings import HypernetConfig
from flows.execution.inert_run import inert_flow, inert_run
from flows.run_name import run_name
from flows.storage_block import storage_root
from flows.tasks import gpu_slots, log_stages_at_info, run_timed, run_with_progress, stage_task
from storage.printed.inert import markdown, one_line

if TYPE_CHECKING:
    from alm_pipeline.hypernetwork.stage import HypernetPipeline

_name = run_name("hypernet", lambda parameters: f"hypernet {parameters['config'].model}")


@stage_task("hypernet-examples")
def hypernet_examples(pipeline: "HypernetPipeline", storage: str) -> float:
    """Cut the corpus into shards of examples, and train the tokenizer to evaluate with."""
    return run_timed(storage, pipeline.shard)


@stage_task("hypernet-scores")
def hypernet_scores(pipeline: "HypernetPipeline", storage: str) -> float:
    """Let the teacher score the examples, if the objective compares likelihoods."""
    if not pipeline.config.needs_scores:
        return 0.0
    with gpu_slots():
        return run_with_progress(storage, pipeline.score)


@stage_task("substrings")
def substrings(pipeline: "HypernetPipeline", storage: str) -> float:
    """Count the substrings that tokenizers are drawn from."""
    return run_timed(storage, pipeline.substrings)


@stage_task("train-hypernetwork")
def train_hypernetwork(pipeline: "HypernetPipeline", storage: str) -> float:
    """Train the network, evaluate and save it."""
    with gpu_slots():
        return run_with_progress(storage, pipeline.train)


@inert_flow("hypernet", _name)
def hypernet(config: HypernetConfig, storage: str = "alm-data") -> dict[str, Any]:
    """Train a hypernetwork for a model: it gets any tokenizer afterward, without training.

    Args:
        config: The complete configuration: corpus, model, objective, sampler, network, train, evaluation.
        storage: Where datasets and the network are stored: a folder, any fsspec URL (s3://bucket/prefix), or
            block:NAME.
    """
    with inert_run():
        from alm_pipeline.hypernetwork.stage import HypernetPipeline

        log_stages_at_info()
        pipeline = HypernetPipeline(config, storage_root(storage))
        pipeline.require_ready()
        seconds = {
            "examples": hypernet_examples(pipeline, storage),
            "scores": hypernet_scores(pipeline, storage),
            "substrings": substrings(pipeline, storage),
            "train": train_hypernetwork(pipeline, storage),
        }
        manifest = pipeline.train()
        url = pipeline.hypernetwork.url
        _show_hypernetwork(url, manifest.results)
        return {"hypernetwork": url, **manifest.results, "seconds": seconds}


def _show_hypernetwork(url: str, results: Mapping[str, Any]) -> None:
    rows = [
        {"tokenizer": one_line(name), **{method: f"{value:.4f}" for method, value in bits.items()}}
        for name, bits in results["held_out_bits_per_byte_by_tokenizer"].items()
    ]
    create_table_artifact(rows, key="alm-hypernet", description=f"Bits per byte without training: {markdown(url)}")
    for row in rows:
        get_run_logger().info("%s", ", ".join(f"{name}: {value}" for name, value in row.items()))
