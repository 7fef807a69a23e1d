"""The values that people change from run to run, put into a configuration."""

import inspect
from pathlib import PurePosixPath
from typing import Any

from alm_pipeline.config import AlmConfig, parse_config


def override(
    config: AlmConfig,
    *,
    corpus: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    tokenizer: str | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    gamma: float | None = None,
    temperature: float | None = None,
    settings: dict[str, Any] | None = None,
) -> AlmConfig:
    """The configuration with what is not None replaced.

    `corpus` is the URL of files, taken whole with the default settings; `settings` has dotted fields (`train.seed`)
    for everything else, and may set None.
    Raises UserError naming a field that does not exist or does not take the value.
    """
    values = {
        # the whole corpus: how the recipe's was cut and sampled says nothing about this one
        "corpus": None if corpus is None else {"name": _name(corpus), "source": {"kind": "files", "urls": [corpus]}},
        "teacher": teacher,
        "student.model": student,
        "student.tokenizer": tokenizer,
        "train.steps": steps,
        "train.learning_rate": learning_rate,
        "objective.gamma": gamma,
        "objective.temperature": temperature,
    }
    content = config.model_dump(mode="json")
    chosen = {field: value for field, value in values.items() if value is not None}
    for field, value in {**chosen, **(settings or {})}.items():
        _put(content, field.split("."), value)
    return parse_config(content, "overrides")


OVERRIDES = tuple(inspect.signature(override).parameters)[1:]
"""The values by name: the parameters of the flow and the options of the command."""


def _put(content: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        child = content.setdefault(part, {})
        content[part] = child if isinstance(child, dict) else {}
        content = content[part]
    content[path[-1]] = value


def _name(url: str) -> str:
    """A folder's name out of a URL: its last part without patterns and endings."""
    parts = [part for part in PurePosixPath(url.split("://")[-1]).parts if "*" not in part]
    stem = (parts[-1] if parts else "").split(".")[0]
    return "".join(character if character.isalnum() else "-" for character in stem).strip("-") or "corpus"
