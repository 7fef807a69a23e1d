"""What a recipe sets beyond what was asked: the fields that differ from their defaults, and that nobody gave."""

import inspect
import textwrap
from collections.abc import Collection, Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.fields.settings import first_sentence
from alm_pipeline.recipes.overrides import Overrides, given_fields
from alm_pipeline.recipes.recipes import recipe_content

_WIDTH = 79
_INDENT = "    "


def recipe_choices(name: str, config: AlmConfig, overrides: Overrides) -> list[str]:
    """Return a paragraph for each section in which the recipe has set something, in lines of at most 79 characters.

    `config` is the recipe of this name with the overrides.
    """
    given = given_fields(overrides)
    warmup = [] if given & {"train", "train.warmup_steps"} else _shorter_warmup(name, config)
    said = given | {"train.warmup_steps"} if warmup else given
    lines = [_paragraph(f"  {section}: {', '.join(choices)}") for section, choices in _by_section(config, said).items()]
    if lines:
        lines.insert(0, f"the recipe {name} also sets (--set FIELD=VALUE changes it):")
    return [*lines, *warmup]


def _by_section(config: AlmConfig, given: Collection[str]) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for path, value in _chosen(config, given):
        section, _, name = path.partition(".")
        sections.setdefault(section, []).append(f"{name} {_shown(value)}" if name else _shown(value))
    return sections


def _chosen(model: BaseModel, given: Collection[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields that are not at their defaults and were not given; the fields of a section one by one."""
    for name, field in type(model).model_fields.items():
        at, value = f"{path}{name}", getattr(model, name)
        if at in given or (not field.is_required() and value == field.get_default(call_default_factory=True)):
            continue
        if isinstance(value, BaseModel) and not path:
            yield from _chosen(value, given, f"{at}.")
        elif not any(other.startswith(f"{at}.") for other in given):
            yield at, value


def _shown(value: Any) -> str:
    """Return a value as YAML in one line; a section at its defaults with all its fields, and what it is."""
    if not isinstance(value, BaseModel):
        return _yaml(value)
    if changed := value.model_dump(mode="json", exclude_defaults=True):
        return _yaml(changed)
    what = first_sentence(inspect.getdoc(type(value)) or "").partition(" (")[0]
    return f"{_yaml(value.model_dump(mode='json'))}: {what[:1].lower()}{what[1:]}"


def _yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n...\n").strip()


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)


def _shorter_warmup(name: str, config: AlmConfig) -> list[str]:
    own = recipe_content(name)["train"]
    if config.train.warmup_steps >= own["warmup_steps"] or config.train.steps >= own["steps"]:
        return []
    return [
        _paragraph(
            f"  train: warmup_steps {config.train.warmup_steps} instead of {own['warmup_steps']}, since the training "
            f"has {config.train.steps} steps instead of {own['steps']}"
        )
    ]
