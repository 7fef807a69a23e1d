"""What rows bring for the chat template beside their messages: tools, and other arguments, by column.

Tools are a list of functions, as it is or as JSON text: OpenAI's `{"type": "function", "function": {…}}`, or bare
functions with a `name`. Nulls that a table has filled in are taken off where it is read; others are the row's own.
"""

import json
from typing import Any

from alm_pipeline.config.template import is_argument, is_list_of_mappings
from alm_pipeline.corpus.files.errors import RowDropped
from alm_pipeline.corpus.files.rows import SourceRow
from alm_pipeline.corpus.formats.values import (
    is_finite,
    json_value,
    optional_is_empty,
    parsed_json,
)

Arguments = dict[str, Any]
"""JSON values by name, as a template reads them."""

TOOLS = "tools"


def stored_arguments(text: str | None) -> Arguments | None:
    """Return the arguments in a value of the column `template_arguments` of examples, which is JSON or null."""
    return None if text is None else dict(json.loads(text))


def row_arguments(row: SourceRow, tools: str | None, arguments: str | None) -> Arguments | None:
    """Return what the columns `tools` and `arguments` of a row hold for the template; None if that is nothing.

    Raises RowDropped if they hold anything else.
    """
    found = template_arguments(row.get(arguments)) if arguments else {}
    own = row_tools(row.get(tools)) if tools else []
    if own:
        found = {**found, TOOLS: own}
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # also UnicodeEncodeError
        raise RowDropped("invalid_utf8") from error
    return found or None


def row_tools(value: Any) -> list[dict[str, Any]]:
    """Return the tools of a row in OpenAI's form; none for null and for empty values.

    Raises RowDropped if the value is anything but functions.
    """
    if optional_is_empty(value):
        return []
    plain = _plain(value, "not_tools")
    items = [plain] if isinstance(plain, dict) and plain else plain or []
    if not isinstance(items, list):
        raise RowDropped("not_tools")
    functions = [_plain(item, "not_tools") if isinstance(item, str) else item for item in items if item is not None]
    if not all(map(_is_function, functions)):
        raise RowDropped("not_tools")
    return function_tools(functions)


def function_tools(functions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return tools in OpenAI's form; bare functions are put into it, and anything else stays as it is."""
    return [
        {"type": "function", "function": tool} if "function" not in tool and isinstance(tool.get("name"), str) else tool
        for tool in functions
    ]


def _is_function(tool: Any) -> bool:
    if not isinstance(tool, dict):
        return False
    function = tool.get("function", tool)
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])


def template_arguments(value: Any) -> Arguments:
    """Return the arguments that a row's value holds: a mapping, or JSON text of one. Those that are null are left out.

    Raises RowDropped if it is anything else, or has a name that no template reads (`messages`, `chat_template`, …).
    """
    if optional_is_empty(value):
        return {}
    arguments = _plain(value, "not_template_arguments")
    if arguments in (None, []):
        return {}
    if not isinstance(arguments, dict):
        raise RowDropped("not_template_arguments")
    found = {name: item for name, item in arguments.items() if item is not None}
    if other := [name for name in found if not is_argument(name)]:
        raise RowDropped("template_argument", other[0])
    if "documents" in found and not is_list_of_mappings(found["documents"]):
        raise RowDropped("template_argument", "documents")
    if TOOLS in found:
        found[TOOLS] = row_tools(found[TOOLS])
    return {name: item for name, item in found.items() if name not in (TOOLS, "documents") or item}


def _plain(value: Any, reason: str) -> Any:
    """Return a value as JSON holds it, parsed if it is JSON text."""
    plain = parsed_json(value) if isinstance(value, str) else value
    if isinstance(value, str) and plain is None and value.strip() not in ("", "null"):
        raise RowDropped(reason)
    held = json_value(plain)
    if not is_finite(plain):
        raise RowDropped("not_finite")
    return held
