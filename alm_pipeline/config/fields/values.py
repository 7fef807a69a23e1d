"""The values that a setting takes: in words, and as text becomes one of them."""

import json
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Quote = Callable[[object], str]

_PLAIN = {str: "text", int: "whole number", float: "number"}
_BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def choices(annotation: Any) -> list[str]:
    """Return the names that a field can be set to, of the Literals in its annotation."""
    if get_origin(annotation) is Literal:
        return list(map(str, get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return choices(kind.annotation) if kind else []
    parts = get_args(annotation)[:1] if get_origin(annotation) in (Annotated, dict) else get_args(annotation)
    return list(dict.fromkeys(choice for part in parts for choice in choices(part)))


def values_in_words(
    annotation: Any, metadata: Sequence[Any] = (), quote: Quote = str, section: str = "a section"
) -> str:
    """Return the values that a field takes; `quote` marks those that are written as they are."""
    origin, arguments = get_origin(annotation), get_args(annotation)

    def words(part: Any, further: Sequence[Any] = ()) -> str:
        return values_in_words(part, further, quote, section)

    match origin:
        case _ if origin is Annotated:
            return words(arguments[0], [*arguments[1:], *metadata])
        case _ if origin is Literal:
            return ", ".join(map(quote, arguments))
        case _ if origin in (Union, types.UnionType):
            return " or ".join(dict.fromkeys(words(argument, metadata) for argument in arguments))
        case _ if origin is tuple:
            return f"list of: {words(arguments[0])}{_bounds(metadata, quote)}"
        case _ if origin is dict:
            return f"mapping; keys: {words(arguments[0])}; values: {words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return section
    if annotation is types.NoneType:
        return quote("null")
    plain = f"{quote('true')} or {quote('false')}" if annotation is bool else _PLAIN.get(annotation, "any")
    return plain + _bounds(metadata, quote)


def _bounds(metadata: Sequence[Any], quote: Quote) -> str:
    words = []
    for item in _flat(metadata):
        if isinstance(item, MinLen):
            words.append("not empty" if item.min_length == 1 else f"at least {item.min_length}")
        elif type(item) in _BOUNDS:
            attribute, sign = _BOUNDS[type(item)]
            words.append(f"{sign} {getattr(item, attribute)}")
        elif pattern := getattr(item, "pattern", None):
            words.append(f"matches {quote(pattern)}")
    return f" ({', '.join(words)})" if words else ""


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        else:
            yield item


def default_in_words(field: FieldInfo, quote: Quote = str) -> str:
    """Return a field's default as YAML writes it; '' if it is a section of its own."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return quote(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))


def parse_value(text: str, annotations: Sequence[Any]) -> Any:
    """Parse the VALUE of `--set FIELD=VALUE` as YAML.

    `annotations` are those of the field, [] if they are unknown. Where the field takes text, and YAML reads something
    that it does not take (`Q: {question}` is a mapping for YAML), the text is taken as it was typed.
    """
    is_text = any(str in plain_types(annotation) for annotation in annotations)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # such as 2024-13-45, which YAML takes for a date
        return text
    if isinstance(value, str):
        # YAML would put the lines of a text without quotes into one
        is_folded = isinstance(node, yaml.ScalarNode) and node.style is None and "\n" in text.strip()
        return text if is_folded else value
    takes = any(_takes(annotation, value) for annotation in annotations)
    return text if is_text and not takes else value


def parse_text(text: str) -> str:
    """Return the text of an option: parsed as YAML if that gives a text, otherwise as it was typed."""
    value: str = parse_value(text, [str])
    return value


def plain_types(annotation: Any) -> set[Any]:
    """Return the types in an annotation, without those inside of lists and mappings."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return plain_types(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return {kind for argument in get_args(annotation) for kind in plain_types(argument)}
    return {origin or annotation}


def _takes(annotation: Any, value: Any) -> bool:
    """Return whether a field takes values of this kind, right or wrong ones."""
    kinds = plain_types(annotation)
    match value:
        case None:
            return type(None) in kinds
        case bool():
            return bool in kinds
        case int() | float():
            return bool(kinds & {int, float})
        case list():
            return bool(kinds & {tuple, list})
        case dict():
            return dict in kinds or any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
    return False
