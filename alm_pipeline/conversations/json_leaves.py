"""The leaves of JSON text: its keys and scalar values, with their places and the ways in which templates spell them.

A template may write the arguments of a call as JSON, with the row's spaces and escapes or others, or key by key in XML.
Each leaf is in what it writes, in one of a few spellings.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

_LEAF = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s{}\[\],:"]+', re.DOTALL)
_PLAIN = re.compile(r"[ !#-\[\]-~]*")  # ASCII without what JSON escapes
_UNIT = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL)

Value = str | int | float | bool | None


class Leaf(NamedTuple):
    """A key or a scalar value in JSON text; of a string, the text between its quotes."""

    start: int
    """in characters"""
    text: str
    value: Value


class Equal(NamedTuple):
    """A stretch that a spelling has in common with the leaf's text."""

    spelled_at: int
    text_at: int
    size: int


class Spelling(NamedTuple):
    """What a template may write for a leaf."""

    text: str
    equal: tuple[Equal, ...]


@lru_cache(maxsize=256)  # a call's are needed for its text and for its parts
def json_leaves(text: str) -> tuple[Leaf, ...] | None:
    """Return the leaves of a JSON mapping in order; None if the text is not a mapping, or has a key twice."""
    values = parsed_mapping(text)
    if values is None:
        return None
    found: list[Value] = []

    def collect(value: Value) -> Value:
        found.append(value)
        return value if isinstance(value, str) else str(value)

    with_leaves(values, collect)
    places = list(_LEAF.finditer(text))
    if len(places) != len(found):
        return None
    return tuple(_leaf(place, value) for place, value in zip(places, found, strict=True))


def parsed_mapping(text: str) -> dict[str, Any] | None:
    """Return the mapping that a text holds as JSON; None if it is not a JSON mapping."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _leaf(place: re.Match[str], value: Value) -> Leaf:
    text = place[0]
    return Leaf(place.start() + 1, text[1:-1], value) if text[0] == '"' else Leaf(place.start(), text, value)


def with_leaves(value: Any, replace: Callable[[Value], Any]) -> Any:
    """Return a copy of a JSON value with each key and each leaf replaced, in the order of the text."""
    if isinstance(value, dict):
        copy = {}
        for key, item in value.items():
            replaced = replace(key)  # before its value
            copy[replaced] = with_leaves(item, replace)
        return copy
    return [with_leaves(item, replace) for item in value] if isinstance(value, list) else replace(value)


def spellings(leaf: Leaf) -> list[Spelling]:
    """Return what a template may write for a leaf, its own text first."""
    if not isinstance(leaf.value, str):
        texts = dict.fromkeys([leaf.text, json.dumps(leaf.value), str(leaf.value)])
        return [Spelling(text, _whole(text) if text == leaf.text else ()) for text in texts]
    if _PLAIN.fullmatch(leaf.value) and leaf.text == leaf.value:
        return [Spelling(leaf.text, _whole(leaf.text))]
    units = _UNIT.findall(leaf.text)
    by_character = [[spell(character) for character in leaf.value] for spell in (str, _escaped, _ascii)]
    spelled = {"".join(others): _equal(units, others) for others in by_character if len(units) == len(others)}
    return [Spelling(text, equal) for text, equal in {leaf.text: _whole(leaf.text), **spelled}.items()]


def escapes(text: str) -> list[Spelling]:
    """Return how a template that writes JSON writes a content: with escapes, or with escapes of all but ASCII."""
    by_character = [[spell(character) for character in text] for spell in (_escaped, _ascii)]
    return [Spelling("".join(others), _equal(text, others)) for others in by_character]


def _whole(text: str) -> tuple[Equal, ...]:
    return (Equal(0, 0, len(text)),)


def _escaped(character: str) -> str:
    return json.dumps(character, ensure_ascii=False)[1:-1]


def _ascii(character: str) -> str:
    return json.dumps(character)[1:-1]


def _equal(units: Sequence[str], others: Sequence[str]) -> tuple[Equal, ...]:
    """Return the stretches in which the characters' units of a text are spelled as in another one."""
    stretches: list[Equal] = []
    text_at = spelled_at = 0
    for unit, other in zip(units, others, strict=True):
        if unit == other:
            last = stretches[-1] if stretches else None
            if last and last.spelled_at + last.size == spelled_at and last.text_at + last.size == text_at:
                stretches[-1] = last._replace(size=last.size + len(unit))
            else:
                stretches.append(Equal(spelled_at, text_at, len(unit)))
        text_at, spelled_at = text_at + len(unit), spelled_at + len(other)
    return tuple(stretches)
