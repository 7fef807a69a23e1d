"""What both engines' plugins share: a method that is wrapped once, and only if it is the one that we know."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from alm_scores.file import PluginError

_MARK = "_alm_scores"


def check_parameters(method: Callable[..., Any], expected: Sequence[str], engine: str) -> None:
    """Raise PluginError unless the method's parameters begin with these, and further ones have defaults."""
    parameters = list(inspect.signature(method).parameters.values())
    names = [parameter.name for parameter in parameters]
    rest = parameters[len(expected) :]
    if names[: len(expected)] != list(expected) or any(parameter.default is parameter.empty for parameter in rest):
        raise PluginError(
            f"alm-scores: {method.__qualname__} of this version of {engine} takes ({', '.join(names)}), and the plugin "
            f"knows ({', '.join(expected)}): install a version of {engine} that docs/how-to/served-teachers.md names"
        )


def is_wrapped(method: Callable[..., Any]) -> bool:
    return hasattr(method, _MARK)


def mark(method: Callable[..., Any]) -> None:
    setattr(method, _MARK, True)
