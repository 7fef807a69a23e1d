"""A configuration as YAML with a comment above each field: what it means, what it takes, and its default.

What is not chosen is there as well, commented out: the fields of a section that is null, and those of other kinds.
"""

import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alm_pipeline.config.fields.settings import models_in
from alm_pipeline.config.fields.values import default_in_words, plain_types, values_in_words
from storage.printed.inert import visible
from storage.printed.secrets import without_secrets

_WIDTH = 100
_INDENT = "  "


def commented_yaml(model: type[BaseModel], content: Mapping[str, Any], heading: str) -> str:
    """Return plain values of a configuration as YAML, without secrets; `heading` is a comment above all of it."""
    lines = [*_comment(heading, _WIDTH), "", *_section(model, without_secrets(content), _WIDTH)]
    return "\n".join(lines) + "\n"


def _section(model: type[BaseModel], content: Mapping[str, Any], width: int) -> Iterator[str]:
    """Yield the lines of a section's fields, with an empty one between them."""
    for number, (name, field) in enumerate(model.model_fields.items()):
        if number:
            yield ""
        yield from _comment(field.description or "", width)
        yield from _comment(_remark(field), width)
        yield from _field(name, field, content[name] if name in content else _default(field), width)


def _default(field: FieldInfo) -> Any:
    """Return the default of a field that a section lacks as a plain value; None if it is required."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _field(name: str, field: FieldInfo, value: Any, width: int) -> Iterator[str]:
    models = models_in(field.annotation)
    chosen = next((model for suffix, model in models if suffix == "" and _is_of(model, value)), None)
    listed = next((model for suffix, model in models if suffix == "[]" and _is_list(value)), None)
    if listed:
        yield f"{name}:"
        for item in value:
            yield from _item(_section(listed, item, width - len(_INDENT)))
        return
    if chosen:
        yield f"{name}:"
        yield from _indented(_section(chosen, value, width - len(_INDENT)))
    else:
        yield from _value(name, value, width)
    for suffix, model in models:
        if suffix == ".KEY":
            yield from _indented(_alternative("KEY", model, width - len(_INDENT)))
        elif suffix == "[]":
            yield from _list_alternative(name, model, [other for _, other in models if other is not model], width)
        elif model is not chosen:
            yield from _alternative(name, model, width)


def _is_of(model: type[BaseModel], value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    kind = model.model_fields.get("kind")
    return kind is None or value.get("kind") == kind.default


def _alternative(name: str, model: type[BaseModel], width: int) -> Iterator[str]:
    """Yield a section that is not chosen, commented out, with its defaults; what it requires is left open."""
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
        if not field.is_required()
    }
    plain = {key: _plain(value) for key, value in defaults.items()}
    yield ""
    yield from _comment(f"Or: {inspect.cleandoc(model.__doc__ or '')}", width)
    yield f"# {name}:"
    for line in _indented(_section(model, plain, width - len(_INDENT) - 2)):
        if line:
            yield f"# {line.removesuffix(' null') if line.endswith(': null') and _is_open(line, model) else line}"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _is_open(line: str, model: type[BaseModel]) -> bool:
    field = model.model_fields.get(line.strip().partition(":")[0])  # None for a line of a section in it
    return field is not None and field.is_required()


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _item(lines: Iterable[str]) -> Iterator[str]:
    """Put the mark of a list's item before the first line that is a field."""
    is_marked = False
    for line in _indented(lines):
        if is_marked or not line or line.lstrip().startswith("#"):
            yield line
        else:
            yield f"- {line.removeprefix(_INDENT)}"
            is_marked = True


def _list_alternative(
    name: str, model: type[BaseModel], others: Iterable[type[BaseModel]], width: int
) -> Iterator[str]:
    """Yield an item of a list, commented out: what it has beside the fields that are shown above, with the defaults."""
    known = {field for other in others for field in other.model_fields}
    yield ""
    yield from _comment(f"Or a list: {inspect.cleandoc(model.__doc__ or '')} Each has the fields above, and:", width)
    yield f"# {name}:"
    yield "# -"
    for field_name, field in model.model_fields.items():
        if field_name not in known:
            value = field.get_default(call_default_factory=True)
            lines = [*_comment(field.description or "", width - 4), *_comment(_remark(field), width - 4)]
            yield from (f"#   {line}" for line in (*lines, *_value(field_name, value, width)))


def _remark(field: FieldInfo) -> str:
    """Return what a field takes, and its default, in brackets; '' for a section, which shows its own fields."""
    kinds = plain_types(field.annotation)
    if all(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
        return ""
    default = "required" if field.is_required() else f"default {default_in_words(field)}"
    return f"[{values_in_words(field.annotation, field.metadata)}; {default}]"


def _value(name: str, value: Any, width: int) -> Iterator[str]:
    """Yield the lines of a field without a section of its own: several for a list or mapping that is too long."""
    line = f"{name}: {_flow(value)}"
    has_sections = isinstance(value, Mapping) and any(isinstance(item, Mapping) for item in value.values())
    if has_sections or (isinstance(value, Mapping | list) and value and len(line) > width):
        yield from _dumped({name: value}, default_flow_style=False)
    else:
        yield from line.splitlines()


def _flow(value: Any) -> str:
    if value is None:
        return "null"
    style = '"' if isinstance(value, str) and "\n" in value else None
    lines = _dumped(value, default_flow_style=True, default_style=style)
    return "\n".join(line for line in lines if line != "...")


def _dumped(value: Any, **style: Any) -> list[str]:
    """Return YAML's lines. Other scripts stay readable where all characters are visible."""
    settings: dict[str, Any] = {"sort_keys": False, "width": 10**6, **style}
    text: str = yaml.safe_dump(value, allow_unicode=True, **settings)
    if visible(text) != text:
        text = yaml.safe_dump(value, allow_unicode=False, **settings)
    return text.splitlines()


def _comment(text: str, width: int) -> list[str]:
    """Return a text as comments, with an empty one between its paragraphs."""
    wrapped = (
        textwrap.wrap(paragraph, width - 2, break_long_words=False, break_on_hyphens=False)
        for paragraph in text.split("\n\n")
    )
    paragraphs = ("\n".join(f"# {line}" for line in lines) for lines in wrapped if lines)
    return "\n#\n".join(paragraphs).splitlines()


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (_INDENT + line if line else "" for line in lines)
