"""Arguments of a template, written into its source: wherever the template goes, they go with it.

A `set` statement in front of the template gives a name its value where the rendering passes none. transformers passes
`tools` and `documents` always, as none where there are none, so none counts as not passed.
"""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from alm_pipeline.config.template import DATE_ARGUMENT
from alm_pipeline.corpus.formats.tools import function_tools

_FIXED_DAY = date(2024, 7, 26)
_DATE_CODES = ("%A", "%a", "%B", "%b", "%-d", "%d", "%e", "%F", "%H", "%I", "%j", "%M", "%-m", "%m", "%p", "%S", "%Y")
_SHORT_CODES = ("%y", "%D", "%T", "%c", "%x", "%X", "%Z", "%z")


def bake(source: str, arguments: Mapping[str, Any]) -> str:
    """Return the template's source with these arguments, JSON values, as its defaults."""
    statements = [
        date_macro(value) if name == DATE_ARGUMENT else _default(name, value) for name, value in arguments.items()
    ]
    # the end of the line belongs to the last block (`trim_blocks`), and the template begins on a line of its own
    return f"{''.join(statements)}\n{source}" if statements else source


def _default(name: str, value: Any) -> str:
    if name == "tools" and value is not None:
        value = function_tools(value)
    is_missing = f"{name} is not defined or {name} is none"
    return f"{{%- if {is_missing} %}}{{%- set {name} = {jinja_literal(value)} %}}{{%- endif %}}"


def date_macro(day: str | None = None) -> str:
    """Return a block that defines `strftime_now`: templates then write the same date on every day.

    `day` is a date (`2024-07-26`), which is written as the template asks, or any other text, which is written as it is.
    """
    return f"{{%- macro {DATE_ARGUMENT}(format) -%}}{{{{ {_date_expression(day)} }}}}{{%- endmacro %}}"


def _date_expression(day: str | None) -> str:
    try:
        moment = datetime.fromisoformat(day) if day else datetime.combine(_FIXED_DAY, datetime.min.time())
    except ValueError:
        return jinja_literal(day)
    replaced = (
        f" | replace({jinja_literal(code)}, {jinja_literal(moment.strftime(code))})"
        for code in (*_DATE_CODES, *_SHORT_CODES)
    )
    return "format" + "".join(replaced)


def jinja_literal(value: Any) -> str:
    """Return a JSON value as an expression of Jinja."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(_escaped(character) for character in value) + '"'
        case Mapping():
            return "{" + ", ".join(f"{jinja_literal(key)}: {jinja_literal(item)}" for key, item in value.items()) + "}"
        case _:
            return "[" + ", ".join(map(jinja_literal, value)) + "]"


def _escaped(character: str) -> str:
    """Return a character within a string. Jinja reads escapes as Python does, and no surrogate pairs as JSON has."""
    if character in '"\\':
        return f"\\{character}"
    # a tag of Jinja in a string ends nothing, but other programs look for it without reading strings
    if character in "{}%#" or not character.isprintable():
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character
