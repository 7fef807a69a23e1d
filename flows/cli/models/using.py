"""The commands that use a finished model, or an ensemble of several."""

from pathlib import Path
from typing import Annotated, Any

import typer

from alm_pipeline.config import SEEDS
from flows.terminal.console import (
    JsonOption,
    Shown,
    err,
    out,
    show_corpus,
    show_count,
    show_text,
    used_columns,
    user_errors,
    write_generated,
)
from flows.terminal.options import (
    Device,
    Examples,
    Precision,
    Template,
    TemplateArguments,
    Text,
    TrustRemoteCode,
    finite,
)

models = typer.Typer()

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The model: a local folder, a name on the Hub, demo:NAME, or an ensemble's YAML file or folder.",
    ),
]


@models.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="The maximum number of new tokens.")] = 200,
    temperature: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="The sampling temperature; 0 always takes the likeliest token."),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Sample only from the likeliest tokens with this total probability."
        ),
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=SEEDS - 1, help="The seed of the sampling; the same seed gives the same text."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Treat the prompt as a user's message, with the tokenizer's chat template.")
    ] = False,
    template: Template = None,
    template_arguments: TemplateArguments = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="With --hypernetwork: the tokenizer to use, a local folder, a name on the Hub or demo:NAME."),
    ] = None,
    hypernetwork: Annotated[
        str | None,
        typer.Option(help="The folder or URL of a hypernetwork of the model, which gives it the tokenizer on the fly."),
    ] = None,
    dtype: Precision = "float32",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Print the text that a model or an ensemble generates from a prompt, as it is generated.

    Lines and tabs are printed as they are. Other control characters are escaped (`\\x1b`), in a terminal and in a pipe:
    a model's text must not control what shows it.
    """
    with user_errors():
        from alm_pipeline.ensemble.generation import generate_text
        from alm_pipeline.tokenization.templates.choice import TemplateChoice

        generate_text(
            model,
            prompt,
            write_generated,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            chat=chat,
            template=TemplateChoice.of_option(template, template_arguments),
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            tokenizer_name=tokenizer,
            hypernetwork=hypernetwork,
        )
        out.write("\n")


@models.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="The models: local folders, names on the Hub, demo:NAME, URLs of stored students, or ensembles' YAML "
            "files or folders.",
        ),
    ],
    corpus: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]URL",
            help="URL of Parquet, Arrow, JSON, CSV or text files, with a name for tables. Can be repeated.",
        ),
    ],
    text: Text = "text",
    examples: Examples = 200,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Also by the values of this column of the corpus, or by `script`."),
    ] = None,
    dtype: Precision = "float32",
    trust_remote_code: TrustRemoteCode = False,
    as_json: JsonOption = False,
) -> None:
    """Print the bits per byte of models and ensembles on the same texts, whatever their tokenizers.

    With several corpora or --by, also for each corpus and group. Intervals are where 95 % of resamples of the documents
    are; the difference to the first model is taken on the same resamples.
    """
    from alm_pipeline.runtime.progress import progress_bars

    with user_errors(), progress_bars(err):
        compared = comparison(models, corpus, text, examples, dtype, by=by, trust_remote_code=trust_remote_code)
    if as_json:
        out.write_json(compared)
    else:
        print_comparison(compared)


def _bits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _end(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _difference(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


COMPARED = (
    Shown("corpus", "corpus", show_corpus),
    Shown("group", "group", show_text),
    Shown("texts", "texts", show_count),
    Shown("text_bytes", "bytes", show_count),
    Shown("model", "model"),
    Shown("bits_per_byte", "bits per byte", _bits),
    Shown("low", "95 % from", _end),
    Shown("high", "to", _end),
    Shown("difference", "difference to the first", _difference),
    Shown("difference_low", "95 % from", _difference),
    Shown("difference_high", "to", _difference),
)


def comparison(
    models: list[str],
    corpora: list[str],
    text: str,
    examples: int,
    dtype: str = "float32",
    *,
    by: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return the models' bits per byte, of all texts and by corpus and group, and what was left out, by reason."""
    from alm_pipeline.comparison.corpora import named_corpora
    from alm_pipeline.comparison.texts import compare_models
    from alm_pipeline.config import ScoreConfig
    from alm_pipeline.ensemble.config import refuse_settings_of_ensembles

    refuse_settings_of_ensembles(models, dtype=dtype, trust_remote_code=trust_remote_code)
    score = ScoreConfig.model_validate({"dtype": dtype})
    texts = named_corpora(corpora, text, examples)
    result = compare_models(models, texts, score, by=by, trust_remote_code=trust_remote_code)
    rows = result.rows(models)
    return {
        "texts": result.total.texts,
        "text_bytes": result.total.text_bytes,
        "left_out": dict(result.left_out),
        "models": [{name: value for name, value in row.items() if name not in _CELL} for row in rows[: len(models)]],
        "cells": rows[len(models) :],
    }


_CELL = ("corpus", "group", "texts", "text_bytes")


def print_comparison(compared: dict[str, Any]) -> None:
    """Print a comparison as a table."""
    total = {"texts": compared["texts"], "text_bytes": compared["text_bytes"]}
    rows = [*({**total, **row} for row in compared["models"]), *compared["cells"]] if compared["cells"] else []
    shown = rows or compared["models"]
    title = f"{compared['texts']:,} texts, {compared['text_bytes']:,} bytes"
    out.print_rows(used_columns(COMPARED, shown), shown, title)
    for reason, count in compared["left_out"].items():
        out.print_line(f"left out, {reason}: {count:,}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _share_difference(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


ACCEPTED = (
    Shown("draft", "draft"),
    Shown("proposed", "proposed", show_count),
    Shown("acceptance", "accepted", _share),
    Shown("low", "95 % from", _share),
    Shown("high", "to", _share),
    Shown("tokens_per_pass", "tokens per pass", lambda value: f"{value:.2f}"),
    Shown("difference", "difference to the first, in points", _share_difference),
    Shown("difference_low", "95 % from", _share_difference),
    Shown("difference_high", "to", _share_difference),
)


@models.command()
def acceptance(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="The large model: a local folder, a name on the Hub or demo:NAME."),
    ],
    drafts: Annotated[
        list[str],
        typer.Argument(
            metavar="DRAFT",
            help="Small models with the same tokenizer: local folders, names on the Hub, demo:NAME, or URLs of stored "
            "students.",
        ),
    ],
    corpus: Annotated[
        str, typer.Option(metavar="URL", help="URL of Parquet, Arrow, JSON, CSV or text files, whose beginnings go on.")
    ],
    text: Text = "text",
    examples: Examples = 50,
    ahead: Annotated[int, typer.Option(min=1, help="The number of tokens that a draft proposes at once.")] = 5,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="The number of a text's tokens that are continued.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=2, help="The maximum number of new tokens per text.")] = 64,
    dtype: Precision = "float32",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: JsonOption = False,
) -> None:
    """Print how many of a draft's tokens a large model accepts in speculative decoding, greedily.

    In each round a draft proposes tokens, and the large model accepts those that it would have generated itself, up to
    the first other one. *Tokens per pass* is what the large model gets from one of its passes: 1 without a draft. Give
    a draft before and after its training to compare them. `alm run draft` makes one.
    """
    from alm_pipeline.runtime.progress import progress_bars

    with user_errors(), progress_bars(err):
        from alm_pipeline.comparison.corpora import texts_at
        from alm_pipeline.comparison.drafts import compare_drafts

        found, left_out = compare_drafts(
            target,
            drafts,
            texts_at(corpus, text, examples),
            ahead=ahead,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    rows = [result.row() for result in found]
    if as_json:
        out.write_json({"target": target, "ahead": ahead, "left_out": left_out, "drafts": rows})
        return
    out.print_rows(used_columns(ACCEPTED, rows), rows, f"{target} with drafts of {ahead} tokens")
    for reason, count in left_out.items():
        out.print_line(f"left out, {reason}: {count:,}")


@models.command()
def evaluate(
    model: Model,
    tasks: Annotated[str, typer.Option(help="Names of lm_eval tasks, separated by commas.")],
    task_folder: Annotated[Path | None, typer.Option(help="A folder with your own YAML tasks.")] = None,
    few_shot: Annotated[
        int | None, typer.Option(min=0, help="The number of examples in the prompt; by default the task's own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The number of examples per task; by default all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="The number of rows per batch.")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the tokenizer's chat template.")] = False,
    template: Template = None,
    template_arguments: TemplateArguments = None,
    think_end: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Where reasoning ends, such as </think>: the answer follows it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write lm_eval's results to this JSON file.")
    ] = None,
    dtype: Precision = "float32",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: JsonOption = False,
) -> None:
    """Run tasks of lm-evaluation-harness on a model or an ensemble, and print a table of the results."""
    with user_errors():
        from alm_pipeline.ensemble.tasks import lm_eval_harness
        from alm_pipeline.preflight.storage_probe import require_writable_file
        from alm_pipeline.tokenization.templates.choice import TemplateChoice
        from storage.urls import overwrite

        if output:
            require_writable_file("--output", output)
        harness = lm_eval_harness()
        (results,) = harness.evaluate(
            [model],
            [name for task in tasks.split(",") if (name := task.strip())],
            task_folder=task_folder,
            few_shot=few_shot,
            limit=limit,
            batch_size=batch_size,
            chat=chat,
            template=TemplateChoice.of_option(template, template_arguments),
            think_end=think_end,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        if as_json:
            out.write_json({"model": model, "tasks": harness.plain_results(results)})
        else:
            out.print_line(harness.results_table(results))
        if output:
            overwrite(str(output), harness.json_results(results).encode())
