"""The values that people change from run to run, put into a configuration.

`Overrides` is the only list of them: the command line makes its options from it, and a test compares the parameters of
the flow `alm` with it.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, ValidationError

from alm_pipeline.config import AlmConfig, parse_config
from alm_pipeline.config.frozen import Frozen, wrong_fields
from storage.errors import UserError
from storage.printed.secrets import naming_path


class Overrides(Frozen):
    """Values that replace those of a configuration; None keeps the configuration's own."""

    corpus: str | None = Field(
        None,
        description="URL of Parquet, Arrow, JSON, CSV or text files to use as the corpus, with all of their texts.",
    )
    teacher: str | None = Field(None, description="The teacher: a local folder, a name on the Hub, or demo:NAME.")
    student: str | None = Field(None, description="The student: a local folder, a name on the Hub, or demo:NAME.")
    tokenizer: str | None = Field(
        None, description="The student's new tokenizer: a local folder, a name on the Hub, or bytes."
    )
    steps: int | None = Field(None, description="The number of training steps.")
    learning_rate: float | None = Field(None, description="The peak learning rate.")
    gamma: float | None = Field(
        None, description="A chunk ends where the teacher's probability of a boundary token exceeds this."
    )
    temperature: float | None = Field(None, description="The temperature of the ALM objective.")
    settings: dict[str, Any] | None = Field(
        None, description='Any other fields of the configuration, by dotted name: {"train.seed": 1}.'
    )


def parse_overrides(values: Mapping[str, Any]) -> Overrides:
    """Build overrides from plain values. Raises UserError with each wrong one."""
    try:
        return Overrides.model_validate(values)
    except ValidationError as error:
        raise UserError(f"overrides: these values are wrong:\n{wrong_fields(error)}") from error


FIELDS = {
    "corpus": "corpus",
    "teacher": "teacher",
    "student": "student.model",
    "tokenizer": "student.tokenizer",
    "steps": "train.steps",
    "learning_rate": "train.learning_rate",
    "gamma": "objective.gamma",
    "temperature": "objective.temperature",
}
"""The field of the configuration that each override replaces; `settings` names its own."""


def override(config: AlmConfig, overrides: Overrides) -> AlmConfig:
    """Return the configuration with the given values replaced. Only `settings` can set a field to None.

    Raises UserError naming a field that does not exist or does not accept the value.
    """
    values = {
        FIELDS[name]: _corpus(value) if name == "corpus" else value
        for name, value in overrides
        if name in FIELDS and value is not None
    }
    content = config.model_dump(mode="json")
    for field, value in {**values, **(overrides.settings or {})}.items():
        if not all(field.split(".")):
            raise UserError(f"overrides: {field!r} is not the dotted name of a field, such as train.seed")
        _put(content, field.split("."), value)
    return parse_config(content, "overrides")


def _corpus(url: str) -> dict[str, Any]:
    """Take the whole corpus: how the recipe cuts and samples its own texts does not apply to this one."""
    return {"name": _name(url), "source": {"kind": "files", "urls": [url]}}


def _put(content: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        child = content.setdefault(part, {})
        content[part] = child if isinstance(child, dict) else {}
        content = content[part]
    content[path[-1]] = value


def _name(url: str) -> str:
    """Make a folder's name out of a URL: its last part without patterns and file endings."""
    path = naming_path(url) if "://" in url else url
    parts = [part for part in PurePosixPath(path.split("://")[-1]).parts if "*" not in part]
    stem = (parts[-1] if parts else "").split(".")[0]
    return "".join(character if character.isalnum() else "-" for character in stem).strip("-") or "corpus"
