"""Options that several commands share, and those that are made from `Overrides`."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import TypeAdapter, ValidationError

from alm_pipeline.config import AlmConfig, Dtype, Level
from alm_pipeline.config.fields.settings import first_sentence
from alm_pipeline.config.fields.spelling import (
    did_you_mean,
    nearest,
    nearest_settings,
    nearest_with_meaning,
    similarity,
)
from alm_pipeline.config.fields.values import parse_text
from alm_pipeline.recipes.overrides import FIELDS, Overrides
from alm_pipeline.recipes.recipes import RECIPES

MODEL = "a local folder, a name on the Hub, or demo:NAME"

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help=f"The configuration: {', '.join(RECIPES)}, or a YAML or JSON file.")
]
Storage = Annotated[
    str, typer.Option(help="The storage root: a folder, any fsspec URL (s3://bucket/prefix), or a Prefect block:NAME.")
]
Root = Annotated[str, typer.Argument(metavar="ROOT", help="The storage root: a folder or any fsspec URL.")]
NewFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder to write to.")]
Text = Annotated[
    str,
    typer.Option(
        parser=parse_text,
        metavar="TEXT",
        help="The column of the corpus that holds the text, or a template: '{question} {answer}'.",
    ),
]
Examples = Annotated[int, typer.Option(min=1, help="The number of texts to take from the corpus.")]
Precision = Annotated[Dtype, typer.Option(help="The dtype to compute in; an ensemble's file sets its own.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda:1, …; by default the GPU, if there is one.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code in the model's folder.")]
Template = Annotated[
    str | None,
    typer.Option(
        help="The chat template to use, with --chat implied: a file with a Jinja template, chatml, plain, or the name "
        "of one that the tokenizer has."
    ),
]
TemplateArguments = Annotated[
    str | None,
    typer.Option(
        metavar="YAML",
        help="What the chat template gets beside the prompt, with --chat implied: '{enable_thinking: false}'.",
    ),
]

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


def parse_level(text: str) -> Level:
    """Return the level of new tokens that an option names."""
    try:
        return TypeAdapter[Level](Level).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{text} is neither measured nor none nor a number from -20 to 20") from error


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
    if name == "corpus":  # an option that can be repeated
        return Annotated[list[str] | None, typer.Option(help=field.description, metavar="URL")]
    callback = finite if float in get_args(field.annotation) else None
    return Annotated[field.annotation, typer.Option(help=field.description, callback=callback)]


def corrected(error: Any) -> str:
    """Return the message of an error in a command's arguments, with the nearest right names and what each means.

    `error` is an exception of click, of the copy that typer carries.
    """
    message: str = error.message.removeprefix("Value error, ")
    if option := getattr(error, "option_name", None):
        return message.rstrip(".") + _nearest_options(option, error.ctx.command.params)
    if message.startswith("No such command"):
        return message.rstrip(".") + _nearest_commands(message.split("'")[1], error.ctx.command.commands)
    if choice := re.fullmatch(r"'(.*)' is not one of ('.*')\.", message):
        return message.rstrip(".") + did_you_mean(
            dict.fromkeys(nearest(choice[1], re.findall("'(.*?)'", choice[2])), "")
        )
    return message


def _nearest_options(option: str, parameters: Sequence[Any]) -> str:
    """Return the options, and the settings that `--set` changes, that a wrong option is likely meant to be."""
    name = option.lstrip("-").replace("-", "_")
    meanings = {
        spelling: first_sentence(parameter.help or "")
        for parameter in parameters
        for spelling in parameter.opts
        if spelling.startswith("--")
    }
    near = [spelling for spelling in nearest(name, (spelling[2:] for spelling in meanings)) if spelling]
    if near and similarity(name, near[0]) >= _CERTAIN:
        return did_you_mean({f"--{spelling}": meanings[f"--{spelling}"] for spelling in near})
    if "--set" in meanings and (settings := nearest_settings(AlmConfig, [name])):
        return did_you_mean({_as_option(setting.path): setting.meaning for setting in settings})
    return did_you_mean({f"--{spelling}": meanings[f"--{spelling}"] for spelling in near})


_CERTAIN = 0.8


def _as_option(path: str) -> str:
    """Return how a setting is given on the command line."""
    option = next((name for name, field in FIELDS.items() if field == path), None)
    return f"--{option.replace('_', '-')}" if option else f"--set {path}=VALUE"


def _nearest_commands(name: str, commands: Mapping[str, Any]) -> str:
    if name in RECIPES:
        return f"; {name} is a recipe: write `alm run {name}`"
    return nearest_with_meaning(name, {known: first_sentence(item.help or "") for known, item in commands.items()})
