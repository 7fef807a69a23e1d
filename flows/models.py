"""The flows on finished models: `transfer` and `ensemble`, which make one, and `evaluate`, which measures any.

What they make lies in a folder that the worker reaches: on its own disk, or one that its machines share.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import Field

from alm_pipeline.config import Method, ScoreConfig, SpecialTokens
from alm_pipeline.ensemble.config import FILE, EnsembleConfig, Mean, MemberConfig, read_config, write_config
from flows.tasks import let_stages_speak
from storage.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16"]
Count = Annotated[int, Field(ge=1)]
Results = dict[str, dict[str, float]]


def _evaluation_name() -> str:
    from prefect.runtime import flow_run

    return f"evaluate {', '.join(flow_run.parameters['models'])}"


@flow(name="evaluate", flow_run_name=_evaluation_name, persist_result=False)
def evaluate(
    models: list[str],
    corpus: str | None = None,
    text: str = "text",
    examples: Count = 200,
    tasks: list[str] | None = None,
    task_folder: str | None = None,
    few_shot: Annotated[int, Field(ge=0)] | None = None,
    limit: Count | None = None,
    batch_size: Count = 1,
    chat: bool = False,
    dtype: Dtype = "float32",
    trust_remote_code: bool = False,
) -> Results:
    """Measure models and ensembles side by side: bits per byte on texts, and tasks of lm-evaluation-harness.

    Args:
        models: Folders, stored students' URLs, hub names, demo:NAME, or ensembles' YAML files.
        corpus: URL of Parquet, JSONL or text files to measure bits per byte on.
        text: Of the corpus: a column, or a template of columns.
        examples: So many texts of the corpus.
        tasks: lm_eval's tasks.
        task_folder: A folder with YAML tasks of your own.
        few_shot: Examples in the prompt; the task's own number by default.
        limit: So many examples of each task; all by default.
        batch_size: Rows at once, of the tasks.
        chat: The tasks' prompts in the tokenizer's chat template.
        dtype: What the models compute in; an ensemble's file says its own.
        trust_remote_code: Run the code that a model's folder carries, such as a byte-level student's.
    """
    if not corpus and not tasks:
        raise UserError("corpus, tasks: nothing to measure: name a corpus, tasks of lm_eval, or both")
    let_stages_speak()
    results: Results = {model: {} for model in models}
    if corpus:
        for model, bits in _bits_per_byte(models, corpus, text, examples, dtype, trust_remote_code).items():
            results[model]["bits per byte"] = bits
    if tasks:
        from alm_pipeline.ensemble.tasks import lm_eval_harness

        settings: dict[str, Any] = {
            "few_shot": few_shot,
            "limit": limit,
            "batch_size": batch_size,
            "chat": chat,
            "dtype": dtype,
        }
        folder = Path(task_folder) if task_folder else None
        harness = lm_eval_harness()
        found = harness.evaluate(models, tasks, task_folder=folder, trust_remote_code=trust_remote_code, **settings)
        for model, scores in zip(models, found, strict=True):
            results[model] |= harness.metrics(scores)
    _show(results)
    return results


def _bits_per_byte(
    models: Sequence[str], corpus: str, text: str, examples: int, dtype: Dtype, trust_remote_code: bool
) -> dict[str, float]:
    from alm_pipeline.comparison.texts import compare_models, texts_at

    texts, score = texts_at(corpus, text, examples), ScoreConfig(dtype=dtype)
    found = compare_models(models, texts, score, trust_remote_code=trust_remote_code)
    get_run_logger().info(
        "%s: %d texts, %d bytes; left out: %s", corpus, found.texts, found.text_bytes, found.left_out or "none"
    )
    return dict(zip(models, found.bits_per_byte, strict=True))


def _show(results: Mapping[str, Mapping[str, float]]) -> None:
    rows = [
        {"model": model, **{name: f"{value:.4f}" for name, value in found.items()}} for model, found in results.items()
    ]
    create_table_artifact(rows, key="alm-evaluation", description="Bits per byte, and the tasks' scores")
    for row in rows:
        get_run_logger().info("%s", ", ".join(f"{name}: {value}" for name, value in row.items()))


@flow(name="transfer", flow_run_name="transfer {model} to the tokenizer of {tokenizer}", persist_result=False)
def transfer(
    model: str,
    tokenizer: str,
    folder: str,
    initialization: Method = "fvt",
    special_tokens: SpecialTokens = "auto",
    donor: str | None = None,
    omp_terms: Count = 8,
    seed: int = 0,
    corpus: str | None = None,
    text: str = "text",
    examples: Count = 200,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Put a tokenizer on a model without training. To train it, too, run alm/distill with `tokenizer`.

    Args:
        model: A folder, a hub name, or demo:NAME.
        tokenizer: The new one: a folder, a hub name, or demo:NAME.
        folder: A new folder for the model with it.
        initialization: Of embeddings that are not copied.
        special_tokens: The model's own, or the tokenizer's.
        donor: Of omp: the model that has this tokenizer.
        omp_terms: Of omp: shared tokens a new one.
        seed: Of drawn embeddings.
        corpus: URL of texts to compare both models on.
        text: Of the corpus: a column, or a template of columns.
        examples: So many texts of the corpus.
        trust_remote_code: Run the code that the model's folder carries.
    """
    from alm_pipeline.transfer import zero_step

    let_stages_speak()
    counts = zero_step.transfer(
        model,
        tokenizer,
        folder,
        initialization=initialization,
        special_tokens=special_tokens,
        donor=donor,
        omp_terms=omp_terms,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    rows = [{"new embeddings": how, "tokens": f"{count:,}"} for how, count in counts.items()]
    create_table_artifact(rows, key="alm-transfer", description=f"{model} with the tokenizer of {tokenizer}: {folder}")
    if not corpus:
        return {"folder": folder, "new_embeddings": counts}
    bits = _bits_per_byte([model, folder], corpus, text, examples, "float32", trust_remote_code)
    _show({name: {"bits per byte": value} for name, value in bits.items()})
    return {"folder": folder, "new_embeddings": counts, "bits_per_byte": bits}


@flow(name="ensemble", flow_run_name="ensemble {folder}", persist_result=False)
def ensemble(
    members: list[MemberConfig],
    folder: str,
    mean: Mean = "probabilities",
    vocabulary: Literal["shared", "mined"] = "shared",
    corpus: str | None = None,
    text: str = "text",
    examples: Count = 200,
    tasks: list[str] | None = None,
    limit: Count | None = None,
) -> Results:
    """Make models of different families one, and measure it beside each of them.

    Args:
        members: The models and their weights; the first one leads: its tokenizer is used.
        folder: Where ensemble.yaml goes, which `alm generate`, `alm evaluate` and alm's loader take for a model.
        mean: Of the members' probabilities, or of their log-probabilities.
        vocabulary: The tokens that all members have, or the first one's with the others' nearest.
        corpus: URL of texts to measure bits per byte on.
        text: Of the corpus: a column, or a template of columns.
        examples: So many texts of the corpus.
        tasks: lm_eval's tasks.
        limit: So many examples of each task; all by default.
    """
    from alm_pipeline.ensemble.loading import load_ensemble

    config = EnsembleConfig(members=tuple(members), mean=mean, vocabulary=vocabulary)
    load_ensemble(config)  # raises what does not fit before anything is written
    file = _written(config, Path(folder))
    if not corpus and not tasks:
        return {}
    names = [str(file), *(member.model for member in members)]
    trust = any(member.trust_remote_code for member in members)
    results: Results = evaluate(
        names, corpus, text, examples, tasks, limit=limit, dtype=members[0].dtype, trust_remote_code=trust
    )
    return results


def _written(config: EnsembleConfig, folder: Path) -> Path:
    """The ensemble's file; one that says the same, as of a run before this one, stays."""
    if (folder / FILE).is_file() and read_config(folder / FILE) == config:
        return folder / FILE
    return write_config(config, folder)
