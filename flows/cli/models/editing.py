"""The command `alm edit`: a model whose activations are edited by demonstrations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from alm_pipeline.config import Dtype, Frozen
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.editing.directions.settings import (
    ActivationConfig,
    DemonstrationsConfig,
    EditConfig,
    EditEvaluationConfig,
    EditMethod,
    Fold,
    Nonlinearity,
    Where,
)
from flows.storage_block import storage_root
from flows.terminal.console import JsonOption, Shown, err, out, user_errors
from flows.terminal.options import MODEL, Device, NewFolder, Storage, TrustRemoteCode, finite
from storage.errors import UserError
from storage.printed.counts import counts_in_words

editing = typer.Typer()
Settings = TypeVar("Settings", bound=Frozen)


def _help(model: type[Frozen], name: str) -> str:
    return model.model_fields[name].description or ""


_OF_DEMONSTRATIONS, _OF_ACTIVATIONS, _OF_EDIT, _OF_EVALUATION = (
    partial(_help, model) for model in (DemonstrationsConfig, ActivationConfig, EditConfig, EditEvaluationConfig)
)


@editing.command()
def edit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {MODEL}.")],
    folder: NewFolder,
    demonstrations: Annotated[str, typer.Option(metavar="URL", help=_OF_DEMONSTRATIONS("url"))],
    method: Annotated[EditMethod, typer.Option(help=_OF_EDIT("method"))] = "sea",
    where: Annotated[Where, typer.Option(help=_OF_ACTIVATIONS("where"))] = "mlp",
    layers: Annotated[str, typer.Option(help=_OF_EDIT("layers"))] = "last:33%",
    energy: Annotated[float, typer.Option(callback=finite, help=_OF_EDIT("energy"))] = 0.998,
    center: Annotated[bool, typer.Option(help=_OF_EDIT("center"))] = True,
    nonlinearity: Annotated[Nonlinearity, typer.Option(help=_OF_EDIT("nonlinearity"))] = "none",
    strength: Annotated[float, typer.Option(callback=finite, help=_OF_EDIT("strength"))] = 1.0,
    swap: Annotated[bool, typer.Option("--swap", help=_OF_EDIT("swap"))] = False,
    fold: Annotated[Fold, typer.Option(help=_OF_EDIT("fold"))] = "auto",
    prompt: Annotated[str, typer.Option(metavar="COLUMN", help=_OF_DEMONSTRATIONS("prompt"))] = "prompt",
    positive: Annotated[str, typer.Option(metavar="COLUMN", help=_OF_DEMONSTRATIONS("positive"))] = "positive",
    negative: Annotated[str, typer.Option(metavar="COLUMN", help=_OF_DEMONSTRATIONS("negative"))] = "negative",
    neutral: Annotated[str | None, typer.Option(metavar="COLUMN", help=_OF_DEMONSTRATIONS("neutral"))] = None,
    choices: Annotated[str | None, typer.Option(metavar="COLUMN", help=_OF_DEMONSTRATIONS("choices"))] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help=_OF_DEMONSTRATIONS("max_rows"))] = None,
    max_bytes: Annotated[int, typer.Option(min=16, help=_OF_DEMONSTRATIONS("max_bytes"))] = 2048,
    shard_rows: Annotated[int | None, typer.Option(min=1, help=_OF_DEMONSTRATIONS("shard_rows"))] = None,
    chat: Annotated[bool, typer.Option("--chat", help=_OF_ACTIVATIONS("chat"))] = False,
    neutral_tokens: Annotated[int, typer.Option(min=1, help=_OF_ACTIVATIONS("neutral_tokens"))] = 64,
    dtype: Annotated[Dtype, typer.Option(help=_OF_ACTIVATIONS("dtype"))] = "bfloat16",
    batch_tokens: Annotated[int, typer.Option(min=1, help=_OF_ACTIVATIONS("batch_tokens"))] = 4096,
    device: Device = None,
    control: Annotated[str | None, typer.Option(metavar="URL", help=_OF_EVALUATION("control"))] = None,
    control_text: Annotated[str, typer.Option(metavar="TEXT", help=_OF_EVALUATION("control_text"))] = "text",
    control_examples: Annotated[int, typer.Option(min=1, help=_OF_EVALUATION("control_examples"))] = 200,
    contrasts: Annotated[str | None, typer.Option(metavar="URL", help=_OF_EVALUATION("contrasts"))] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Names of lm_eval tasks to run before and after, separated by commas.")
    ] = None,
    task_folder: Annotated[str | None, typer.Option(help=_OF_EVALUATION("task_folder"))] = None,
    limit: Annotated[int | None, typer.Option(min=1, help=_OF_EVALUATION("limit"))] = None,
    storage: Storage = "alm-data",
    trust_remote_code: TrustRemoteCode = False,
    as_json: JsonOption = False,
) -> None:
    """Edit a model's activations by demonstrations, without training, and print what that does.

    Reads the model's activations at answers to move to and answers to move away from, and writes a model in which a
    projection per layer (sea), or a vector per layer (mean_shift), moves its activations. Stages are stored: another
    method, energy or range of layers computes its projections alone. Always measures bits per byte on control texts.
    """
    given = {**locals(), "url": demonstrations, "tasks": _names(tasks)}
    with user_errors():
        from alm_pipeline.editing.edit import Editing, describe
        from alm_pipeline.preflight.storage_probe import require_writable
        from alm_pipeline.provenance import provenance_of
        from alm_pipeline.runtime.progress import progress_bars

        require_writable("FOLDER", folder.parent)
        rows, read = _settings(DemonstrationsConfig, given), _settings(ActivationConfig, given)
        change, evaluation = _settings(EditConfig, given), _settings(EditEvaluationConfig, given)
        with progress_bars(err):
            job = Editing(model, rows, storage_root(storage), read, change, trust_remote_code)
            job = replace(job, provenance=provenance_of(job.configuration))
            record, measures = job.run(folder, evaluation)
        if as_json:
            out.write_json({"folder": str(folder), "record": record, "measures": measures})
            return
        out.print_line(f"{folder}: {describe(record)}")
        _print_measures(measures, record)


def _names(tasks: str | None) -> tuple[str, ...]:
    return tuple(name for task in (tasks or "").split(",") if (name := task.strip()))


def _settings(model: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Return the settings that the options give. Raises UserError for values that don't fit."""
    try:
        return model.model_validate({name: given[name] for name in model.model_fields})
    except ValidationError as error:
        raise UserError(f"these options are wrong:\n{wrong_fields(error, model)}") from error


def _print_measures(measures: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    from alm_pipeline.editing.card import difference_text

    columns = (
        Shown("name", "measure"),
        Shown("before", "before", "{:.4f}".format),
        Shown("after", "after", "{:.4f}".format),
        Shown("difference", "difference [95 %]", difference_text),
        Shown("items", "items", "{:,}".format),
    )
    dropped = counts_in_words(record["dropped"])
    out.print_rows(columns, measures, f"{record['rows']:,} demonstrations; left out: {dropped}")
