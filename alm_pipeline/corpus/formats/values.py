"""Values of rows as JSON holds them. What it has no form of is text or left out; the rest raises RowDropped."""

import json
import math
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from alm_pipeline.corpus.files.errors import RowDropped

_MAX_DEPTH = 100
"""How deep the values of a row may be nested: every later stage reads them with a limited stack."""


def optional_is_empty(value: Any) -> bool:
    """Return whether a row has nothing in a column that it may lack."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def parsed_json(text: str) -> Any:
    """Return the list or mapping that a text holds as JSON; None if it holds neither."""
    try:
        return json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except RecursionError as error:
        raise RowDropped("nested_too_deeply") from error
    except ValueError:
        return None


def json_value(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can hold it, without the keys of what it can't; None if it can't hold the value."""
    if depth > _MAX_DEPTH:
        raise RowDropped("nested_too_deeply")
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case date() | time():
            return value.isoformat()
        case Decimal() | timedelta() | UUID():
            return str(value)
        case dict():
            held = {str(key): json_value(item, depth + 1) for key, item in value.items()}
            return {key: item for key, item in held.items() if item is not None or value.get(key) is None}
        case list():
            return [json_value(item, depth + 1) for item in value]
    return None


def is_finite(value: Any) -> bool:
    """Return whether a value holds no NaN or infinite number at any depth."""
    if isinstance(value, dict | list):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float | Decimal) or math.isfinite(value)


def check_unicode(text: str) -> None:
    """Raise RowDropped for a text that UTF-8 can't hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowDropped("invalid_utf8") from error
