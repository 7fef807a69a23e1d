"""Every setting of a configuration: the fields of its models, by dotted path."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z0-9`]|$)|\.$")


@dataclass(frozen=True)
class Setting:
    """One field of a configuration."""

    path: str
    """dotted: `train.steps`; `objective.terms.KEY.start` in a mapping, `members[].model` in a list"""
    field: FieldInfo
    owner: type[BaseModel]
    """the model that has the field"""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def meaning(self) -> str:
        """The first sentence of the description, without its period."""
        return first_sentence(self.field.description or "")

    @property
    def kind(self) -> str | None:
        """The value of `kind` that selects the field's model; None if the model is not one of several."""
        kind = self.owner.model_fields.get("kind")
        return kind.default if kind else None


@dataclass(frozen=True)
class Section:
    """A model of a configuration, and the path that it is at."""

    path: str
    model: type[BaseModel]
    same: type[BaseModel] | None = None
    """another model of the same setting, whose fields this one has, too: they are not listed twice"""

    @property
    def settings(self) -> list[Setting]:
        prefix, listed = f"{self.path}." if self.path else "", self.same.model_fields if self.same else {}
        fields = self.model.model_fields.items()
        return [Setting(prefix + name, field, self.model) for name, field in fields if name not in listed]


def sections(model: type[BaseModel], path: str = "", same: type[BaseModel] | None = None) -> Iterator[Section]:
    """Yield the sections of a configuration, each before those that its settings hold.

    `same` is another model of the same setting, whose fields the model has, too.
    """
    section = Section(path, model, same)
    yield section
    for setting in section.settings:
        models = models_in(setting.field.annotation)
        for suffix, nested in models:
            base = next((other for _, other in models if other is not nested and issubclass(nested, other)), None)
            yield from sections(nested, setting.path + suffix, base)


@lru_cache
def settings_of(model: type[BaseModel]) -> tuple[Setting, ...]:
    """Return all settings of a configuration, at every depth."""
    return tuple(setting for section in sections(model) for setting in section.settings)


def models_in(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """Return the models in an annotation, each with what follows the field's path: a mapping's key, a list's place."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [("", annotation)]
    suffix = {dict: ".KEY", tuple: "[]", list: "[]"}.get(get_origin(annotation), "")
    nested = [item for argument in get_args(annotation) for item in models_in(argument)]
    return [(suffix + inner, model) for inner, model in nested]


def annotation_at(model: type[BaseModel], path: Sequence[str]) -> list[Any]:
    """Return the annotations of a dotted path in every model that has it; [] if none does."""
    found: list[Any] = [model]
    for part in path:
        found = [inner for annotation in found for inner in _inside(annotation, part)]
    return found


def _inside(annotation: Any, part: str) -> list[Any]:
    """Return the annotations of a field, of a key of a mapping, or of a place in a list, in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation.model_fields[part].annotation] if part in annotation.model_fields else []
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return [arguments[1]]
    if get_origin(annotation) in (tuple, list) and part.isdecimal():
        return [arguments[0]]
    if get_origin(annotation) is Annotated:
        arguments = arguments[:1]
    return [inner for argument in arguments for inner in _inside(argument, part)] if arguments else []


def first_sentence(text: str) -> str:
    """Return the first sentence of a description in one line, without its period."""
    line = " ".join(text.split())
    end = _SENTENCE_END.search(line)
    return line[: end.start()] if end else line
