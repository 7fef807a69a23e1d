"""The page of settings: every field of the configuration, from the pydantic models' own descriptions.

A setting is a dotted path (`train.steps`), as `--set` and a flow's `settings` take it. A field whose value is a model,
or one of several, gets a table of its own; a setting without a description fails `tests/test_docs.py`.
"""

import inspect
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.overrides import FIELDS, Overrides
from alm_pipeline.ensemble.config import EnsembleConfig
from docs.generator.markdown import anchor, code, escape, table

_PLAIN = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", types.NoneType: "`null`"}
_BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
_INTRODUCTION = """# Settings

Every setting of a run. In a YAML file they are nested. `--set train.seed=1` on the command line,
`-p 'settings={"train.seed": 1}'` in a Prefect run and `override(config, Overrides(settings={"train.seed": 1}))` in
Python name one by its dotted path. `alm show transfer` prints a complete configuration. A misspelled setting is refused
with its name.

This page is generated from the models in `alm_pipeline.config`.
"""
_OVERRIDES = """## Overrides

Values that often change from run to run are options of `alm run`, parameters of the flow `alm`, and fields of
`Overrides` in Python.
"""
_ENSEMBLE = """
## An ensemble's file { #ensemble }

A file of its own, which `alm generate`, `alm evaluate` and `alm compare` read: see [ensembles](../how-to/ensembles.md).
"""


@dataclass(frozen=True)
class Setting:
    """One field of the configuration."""

    path: str
    """dotted: `train.steps`"""
    field: FieldInfo

    @property
    def default(self) -> str:
        if self.field.is_required():
            return "*required*"
        value = self.field.get_default(call_default_factory=True)
        return "" if isinstance(value, BaseModel) else code(_yaml(value))

    @property
    def values(self) -> str:
        return _values(self.field.annotation, self.field.metadata)


@dataclass(frozen=True)
class Section:
    """A model of the configuration, and the path that it is at."""

    path: str
    model: type[BaseModel]

    @property
    def settings(self) -> list[Setting]:
        prefix = f"{self.path}." if self.path else ""
        return [Setting(prefix + name, field) for name, field in self.model.model_fields.items()]


def sections(model: type[BaseModel] = AlmConfig, path: str = "") -> Iterator[Section]:
    """The sections of a configuration, each before those that its settings hold."""
    section = Section(path, model)
    yield section
    for setting in section.settings:
        for suffix, nested in _models(setting.field.annotation):
            yield from sections(nested, setting.path + suffix)


def page() -> str:
    """The page, in Markdown."""
    run = "\n".join(map(_section, sections()))
    ensemble = "\n".join(_table(section) for section in sections(EnsembleConfig))
    return f"{_INTRODUCTION}\n{_OVERRIDES}\n{_overrides()}\n{run}\n{_ENSEMBLE}\n{ensemble}"


def _overrides() -> str:
    rows = [
        (code(f"--{name.replace('_', '-')}"), code(name), code(FIELDS[name]), escape(field.description or ""))
        for name, field in Overrides.model_fields.items()
        if name in FIELDS
    ]
    return table(("option", "parameter", "setting", "meaning"), rows)


def _section(section: Section) -> str:
    kind = section.model.model_fields.get("kind")
    name = section.path or "The whole run"
    title = f"{name}, kind {code(kind.default)}" if kind else name
    level = "#" * (2 + section.path.count("."))
    return f"{level} {title}\n\n{escape(inspect.cleandoc(section.model.__doc__ or ''))}\n\n{_table(section)}"


def _table(section: Section) -> str:
    rows = [
        (
            anchor(setting.path) + code(setting.path),
            setting.default,
            setting.values,
            escape(setting.field.description or ""),
        )
        for setting in section.settings
    ]
    return table(("setting", "default", "values", "meaning"), rows)


def _models(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """The models in an annotation, each with what follows the field's path: a key of a mapping, a place in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [("", annotation)]
    suffix = {dict: ".KEY", tuple: "[]"}.get(get_origin(annotation), "")
    nested = [item for argument in get_args(annotation) for item in _models(argument)]
    return [(suffix + inner, model) for inner, model in nested]


def _values(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    """The values that a field takes, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    match origin:
        case _ if origin is Annotated:
            return _values(arguments[0], [*arguments[1:], *metadata])
        case _ if origin is Literal:
            return ", ".join(map(code, arguments))
        case _ if origin in (Union, types.UnionType):
            return _one_of([_values(argument, metadata) for argument in arguments])
        case _ if origin is tuple:
            return f"list of: {_values(arguments[0])}{_bounds(metadata)}"
        case _ if origin is dict:
            return f"mapping; keys: {_values(arguments[0])}; values: {_values(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section (see below)"
    bounds = "" if annotation is types.NoneType else _bounds(metadata)
    return _PLAIN.get(annotation, "any") + bounds


def _one_of(values: list[str]) -> str:
    return " or ".join(dict.fromkeys(values))


def _bounds(metadata: typing.Sequence[Any]) -> str:
    words = []
    for item in _flat(metadata):
        if isinstance(item, MinLen):
            words.append("not empty" if item.min_length == 1 else f"at least {item.min_length}")
        elif type(item) in _BOUNDS:
            attribute, sign = _BOUNDS[type(item)]
            words.append(f"{sign} {getattr(item, attribute)}")
        elif pattern := getattr(item, "pattern", None):
            words.append(f"matches {code(pattern)}")
    return f" ({', '.join(words)})" if words else ""


def _flat(metadata: typing.Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        else:
            yield item


def _yaml(value: Any) -> str:
    """A default as it is written in YAML."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
