"""Pieces of Markdown that the generated pages share."""

import html
import re
from collections.abc import Iterable, Sequence

_OUTSIDE_CODE = re.compile(r"(`[^`]*`)")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Cells are Markdown already, but may hold newlines and bars."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def escape(text: str) -> str:
    """A plain text as Markdown: what is in backticks stays code, and nothing else is markup."""
    parts = _OUTSIDE_CODE.split(text)
    return "".join(part if part.startswith("`") else _escape_markup(part) for part in parts)


def _escape_markup(text: str) -> str:
    return re.sub(r"([*_<\[\]{}\\])", r"\\\1", text)


def code(value: object) -> str:
    """A value as inline code."""
    text = str(value)
    if "|" in text:  # a bar would end the cell of a table, also in backticks
        return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def anchor(name: str) -> str:
    """A place that a link can name."""
    return f'<a id="{name}"></a>'
