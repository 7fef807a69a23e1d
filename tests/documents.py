"""Documents of JSON or YAML with one value changed."""

import copy
from typing import Any


def replaced(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of the document with another value at the path of keys and indices."""
    document = copy.deepcopy(document)
    *parents, last = path
    at = document
    for key in parents:
        at = at[key]
    at[last] = value
    return document
