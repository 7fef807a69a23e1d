"""The nearest settings, values and names to one that does not exist."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel

from alm_pipeline.config.fields.settings import Setting, annotation_at, settings_of
from alm_pipeline.config.fields.synonyms import SYNONYMS
from alm_pipeline.config.fields.values import choices

Value = TypeVar("Value")

_NEAR, _NEAR_ELSEWHERE = 0.5, 0.75
"""how similar a name has to be, in the same section and in others (1 is the same)"""
_SHORTEST_BEGINNING, _OF_BEGINNING = 3, 0.85
"""a name may be cut off: `temp`"""
_OF_SAME_LETTERS = 0.9
"""two letters may have changed places, which difflib counts as two mistakes"""
_AS_NEAR = 0.1
_MOST = 4


def similarity(name: str, known: str) -> float:
    """Return how similar a name is to a known one, from 0 to 1, whatever their case and their hyphens."""
    name, known = _plain(name), _plain(known)
    ratio = difflib.SequenceMatcher(None, name, known).ratio()
    if name != known and sorted(name) == sorted(known):
        return max(ratio, _OF_SAME_LETTERS)
    is_beginning = len(name) >= _SHORTEST_BEGINNING and known.startswith(name)
    return max(ratio, _OF_BEGINNING) if is_beginning and name != known else ratio


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def nearest(name: str, names: Iterable[str], least: float = 0.6) -> list[str]:
    """Return those of the names that `name` is likely meant to be, the nearest first, with at least this similarity."""
    return _best([(similarity(name, other), other) for other in dict.fromkeys(names)], least)


def _best(scored: Sequence[tuple[float, Value]], least: float) -> list[Value]:
    near = sorted((pair for pair in scored if pair[0] >= least), key=lambda pair: -pair[0])
    return [value for score, value in near if score >= near[0][0] - _AS_NEAR][:_MOST]


def did_you_mean(meanings: Mapping[str, str]) -> str:
    """Return the end of a message that names the nearest names with what each means; '' if there are none."""
    named = [f"{name} ({meaning})" if meaning else name for name, meaning in meanings.items()]
    return f"; did you mean {', or '.join(named)}?" if named else ""


def nearest_with_meaning(name: str, meanings: Mapping[str, str]) -> str:
    """Return `did_you_mean` of the names that are near to `name`."""
    return did_you_mean({other: meanings[other] for other in nearest(name, meanings)})


def nearest_settings(model: type[BaseModel], path: Sequence[str], value: Any = None) -> list[Setting]:
    """Return the settings that a path that does not exist is likely meant to be, the nearest first.

    They are those that other trainers call so, those of the same name in another place, and those of a similar name
    in the same place, or else anywhere. `value` is what the path is set to: of a section, its fields say what is meant.
    """
    name, parents = path[-1], path[:-1]
    known = _settings_by_path(model, parents)
    beside = _best([(similarity(name, s.name), s) for s in known if s.section == ".".join(parents)], _NEAR)
    if isinstance(value, Mapping) and value:
        sections = [other for other in beside if annotation_at(model, [*other.path.split("."), str(next(iter(value)))])]
        return sections[:1] or nearest_settings(model, [*path, str(next(iter(value)))])
    if beside and similarity(name, beside[0].name) == 1:
        return beside[:1]
    is_near = bool(beside) and similarity(name, beside[0].name) >= _NEAR_ELSEWHERE
    if meant := _of_this_name(model, path, known):
        return [*(beside[:1] if is_near and beside[0] not in meant else []), *meant]
    if is_near:
        return beside
    dotted = ".".join(path)
    elsewhere = [(max(similarity(name, s.name), similarity(dotted, s.path)), s) for s in known]
    return _best([pair for pair in elsewhere if not dotted.startswith(f"{pair[1].path}.")], _NEAR_ELSEWHERE) or beside


def _of_this_name(model: type[BaseModel], path: Sequence[str], known: Sequence[Setting]) -> list[Setting]:
    """Return the settings that are called as the end of a path is, by us or by others."""
    name = _plain(path[-1])
    synonyms = SYNONYMS.get(name, ())
    if synonymous := [setting for other in synonyms for setting in known if f".{setting.path}".endswith(f".{other}")]:
        return synonymous
    same = [setting for setting in known if setting.name == name]
    is_section = len(path) == 1 or bool(annotation_at(model, path[:-1]))
    return same[:_MOST] if is_section else _best([(similarity(".".join(path), s.path), s) for s in same], 0)


def _settings_by_path(model: type[BaseModel], parents: Sequence[str]) -> list[Setting]:
    """Return all settings, each path once; those beside a path in a mapping or list have its keys and places."""
    found: dict[str, Setting] = {}
    for setting in settings_of(model):
        parts = setting.path.replace("[]", ".[]").split(".")
        if len(parts) == len(parents) + 1:
            parts = [
                given if part == "KEY" or (part == "[]" and given.isdecimal()) else part
                for part, given in zip(parts, [*parents, ""], strict=True)
            ]
        path = ".".join(parts).replace(".[]", "[]")
        found.setdefault(path, replace(setting, path=path))
    return list(found.values())


def meanings_of(settings: Iterable[Setting]) -> dict[str, str]:
    """Return the settings' meanings by path."""
    return {setting.path: setting.meaning for setting in settings}


def unknown_setting(model: type[BaseModel], path: Sequence[str], value: Any = None) -> str:
    """Return the message for a path that does not exist: it names the nearest settings and what they mean."""
    dotted = ".".join(path)
    for setting in settings_of(model):
        if setting.path == dotted and setting.kind:
            return f"{dotted}: only with {setting.section}.kind {setting.kind}"
    near = nearest_settings(model, path, value)
    return f"{dotted}: no such setting{did_you_mean(meanings_of(near)) or '; `alm show` prints all settings'}"


def wrong_choice(path: str, value: Any, annotation: Any, meaning: str = "") -> str:
    """Return the message for a value that is none of a field's names."""
    names = choices(annotation)
    near = nearest(str(value), names, _NEAR)
    what = f" ({meaning})" if meaning else ""
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{path}: {value!r} is not one of {', '.join(names)}{what}{hint}"
