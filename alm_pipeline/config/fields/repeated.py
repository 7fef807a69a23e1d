"""Lists of models, tokenizers and texts in which one is named twice, however it is spelled: it would count double."""

import os
from collections.abc import Iterable

from storage.errors import UserError


def place_of(name: str) -> str:
    """Return what all spellings of a name have in common: of a local path its real path, links followed.

    Names on a Hub and URLs have one spelling, apart from a slash at the end.
    """
    path = name.removeprefix("file://")
    return path.rstrip("/") if "://" in path or "::" in path else os.path.realpath(path)


def each_once(names: Iterable[str]) -> list[str]:
    """Return the names of different places, each as it is spelled first."""
    places: dict[str, str] = {}
    for name in names:
        places.setdefault(place_of(name), name)
    return list(places.values())


def refuse_repeated(names: Iterable[str], what: str = "model") -> None:
    """Raise UserError if two names are of the same place."""
    places: dict[str, str] = {}
    for name in names:
        if (place := place_of(name)) not in places:
            places[place] = name
        elif places[place] == name:
            raise UserError(f"{name}: is named twice: name each {what} once")
        else:
            raise UserError(f"{places[place]} and {name}: are the same {what}: name it once")
