"""Marks of messages to learn or not: `weight`, `loss_mask` or `train`, with 0 or 1, false or true.

A message of a corpus's examples has the mark `weight: 0` if it is context alone, and otherwise none.
"""

from collections.abc import Mapping
from typing import Any

from alm_pipeline.corpus.files.errors import RowDropped
from storage.schemas import PROMPT

MARKS = ("weight", "loss_mask", "train")
"""The keys of messages that are marks, by order: where messages have several, the first counts."""
_MARK = MARKS[0]
_LEARNED: dict[str, bool] = {"0": False, "false": False, "1": True, "true": True}


def is_mark(value: Any) -> bool:
    """Return whether a value says that a message is learned, or that it is not."""
    return _key(value) in _LEARNED


def is_unlearned(value: Any) -> bool:
    """Return whether a value says that a message is not learned."""
    return _LEARNED.get(_key(value)) is False


def _key(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def with_mark(message: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a message with the mark of the examples, read from `key`. Raises RowDropped for any other value."""
    if not key:
        return {name: item for name, item in message.items() if name not in MARKS}
    value = message.get(key)
    if value is not None and not is_mark(value):
        raise RowDropped(f"unknown_{key}", str(value))
    rest = {name: item for name, item in message.items() if name not in (key, *MARKS)}
    return {**rest, _MARK: 0} if is_unlearned(value) else rest


def learned_role(message: Mapping[str, Any], role: str) -> str:
    """Return the role of a section of an example's message: that of context if the message is not learned."""
    mark = message.get(_MARK)
    return PROMPT if isinstance(mark, int) and not mark else role
