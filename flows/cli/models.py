"""The commands that use a finished model, or an ensemble of several."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.console import err, out, user_errors

models = typer.Typer()

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="a folder, a hub name, demo:NAME, or an ensemble's YAML file or folder")
]


class Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Precision = Annotated[Dtype, typer.Option(help="of the computation; an ensemble's file says its own")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="run the code that the model's folder carries")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda:1, …; the GPU where there is one")]


@models.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="the text to continue")],
    max_tokens: Annotated[int, typer.Option(min=1, help="new tokens at most")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token each time")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="sample from the likeliest tokens of this mass")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="for sampling the same text again")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="the prompt is a user's message: use the chat template")] = False,
    dtype: Precision = Dtype.FLOAT32,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Print what a model or an ensemble makes of a prompt, as it comes."""
    with user_errors():
        from alm_pipeline.ensemble.generation import generate_text

        generate_text(
            model,
            prompt,
            lambda text: typer.echo(text, nl=False),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            chat=chat,
            dtype=dtype.value,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        typer.echo()


@models.command()
def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="as of `alm evaluate`, and stored students' URLs")
    ],
    corpus: Annotated[str, typer.Option(help="URL of Parquet, JSONL or text files")],
    text: Annotated[str, typer.Option(help="of the corpus: a column, or a template of columns")] = "text",
    examples: Annotated[int, typer.Option(min=1, help="of the corpus: how many")] = 200,
    dtype: Precision = Dtype.FLOAT32,
    trust_remote_code: Trust = False,
) -> None:
    """Print the bits per byte of models and ensembles on the same texts, whatever their tokenizers."""
    from alm_pipeline.runtime.progress import progress_bars

    with user_errors(), progress_bars(err):
        print_comparison(models, corpus, text, examples, dtype.value, trust_remote_code=trust_remote_code)


def print_comparison(
    models: list[str],
    corpus: str,
    text: str,
    examples: int,
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
) -> None:
    """A table of the models' bits per byte, and what texts were left out."""
    from alm_pipeline.comparison.texts import compare_models, texts_at
    from alm_pipeline.config import ScoreConfig

    score, texts = ScoreConfig.model_validate({"dtype": dtype}), texts_at(corpus, text, examples)
    found = compare_models(models, texts, score, trust_remote_code=trust_remote_code)
    table = Table("model", "bits per byte", title=f"{found.texts:,} texts, {found.text_bytes:,} bytes")
    for name, bits in zip(models, found.bits_per_byte, strict=True):
        table.add_row(name, f"{bits:.4f}")
    out.print(table)
    for reason, count in found.left_out.items():
        out.print(f"left out, {reason}: {count:,}", markup=False)


@models.command()
def evaluate(
    model: Model,
    tasks: Annotated[str, typer.Option(help="lm_eval's tasks, with commas between them")],
    task_folder: Annotated[Path | None, typer.Option(help="a folder of YAML tasks of your own")] = None,
    few_shot: Annotated[int | None, typer.Option(min=0, help="examples in the prompt; the task's own number")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many examples of each task; all")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="rows at once")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="prompts in the tokenizer's chat template")] = False,
    output: Annotated[Path | None, typer.Option(metavar="FILE.json", help="write lm_eval's results there, too")] = None,
    dtype: Precision = Dtype.FLOAT32,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Run tasks of lm-evaluation-harness on a model or an ensemble, and print its table."""
    with user_errors():
        from alm_pipeline.ensemble.tasks import lm_eval_harness

        harness = lm_eval_harness()
        (results,) = harness.evaluate(
            [model],
            [task.strip() for task in tasks.split(",")],
            task_folder=task_folder,
            few_shot=few_shot,
            limit=limit,
            batch_size=batch_size,
            chat=chat,
            dtype=dtype.value,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        out.print(harness.results_table(results), markup=False, highlight=False)
        if output:
            output.write_text(json.dumps(results["results"], indent=2, default=str), encoding="utf-8")
