"""Options that several commands share, and those that are made from `Overrides`."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from alm_pipeline.config import Dtype
from alm_pipeline.config.overrides import Overrides
from alm_pipeline.config.recipes import RECIPES

MODEL = "a local folder, a name on the Hub, or demo:NAME"

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help=f"The configuration: {', '.join(RECIPES)}, or a YAML or JSON file.")
]
Storage = Annotated[
    str, typer.Option(help="The storage root: a folder, any fsspec URL (s3://bucket/prefix), or a Prefect block:NAME.")
]
NewFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder to write to.")]
Text = Annotated[
    str, typer.Option(help="The column of the corpus that holds the text, or a template: '{question} {answer}'.")
]
Examples = Annotated[int, typer.Option(min=1, help="The number of texts to take from the corpus.")]
Precision = Annotated[Dtype, typer.Option(help="The dtype to compute in; an ensemble's file sets its own.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda:1, …; by default the GPU, if there is one.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code in the model's folder.")]

_SETTINGS = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any other field of the configuration, by dotted name, with a YAML value: train.seed=1. Can be repeated.",
    ),
]


def finite(value: float | None) -> float | None:
    """The callback of every option that is a number: `nan` and `inf` are none."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def override_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make an option of each field of `Overrides`, in place of the command's `**overrides`."""
    parameters = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name))
        for name in Overrides.model_fields
    ]
    command.__signature__ = inspect.Signature([*parameters, *options])  # type: ignore[attr-defined]
    return command


def _option(name: str) -> Any:
    if name == "settings":
        return _SETTINGS
    field = Overrides.model_fields[name]
    callback = finite if float in get_args(field.annotation) else None
    return Annotated[field.annotation, typer.Option(help=field.description, callback=callback)]
