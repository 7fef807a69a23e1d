"""Foreign text made inert, for whatever shows it: terminals, logs, Markdown, YAML, and pictures as PNG or HTML.

Ids, names, paths, texts and messages of other libraries are untrusted: an escape sequence moves the cursor, a
right-to-left override swaps letters, a pipe breaks a table, and a lone surrogate (a byte of a file's name that is not
UTF-8) can't be encoded at all. Secrets are left out here, too, so that nothing is shown that did not pass `masked`.
"""

import html
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from storage.printed.secrets import masked, without_secrets

_LINES_AND_TABS = "\n\t"
# letters and signs that Markdown gives a meaning within a line; `_` between letters has none
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# C0 but line feed and tab, C1, marks and overrides of direction, separators of lines, lone surrogates
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_AT_LINE_START = re.compile(r"^(\s*|\s*\d+)([#+>=-]|(?<=\d)[.)](?=\s|$))")


def visible(text: object) -> str:
    """Return a text for a terminal or a log; only its lines and tabs are kept.

    What can't be seen, or changes what is around it, is written as Python writes it: `\\x1b`, `\\u202e`, and `\\xff`
    for a byte that is not UTF-8.
    """
    return _escaped(masked(str(text)), _LINES_AND_TABS)


def one_line(text: object) -> str:
    """Return a text as `visible` does, in one line: a name, a title, a cell."""
    return _escaped(masked(str(text)), "")


def generated(text: str) -> str:
    """Return a model's text for a terminal: as it is, but without control characters and changes of direction.

    Characters that emoji and many scripts are joined with stay.
    """
    return _CONTROLS.sub(lambda match: _escape(match[0]), text)


def markdown(text: object) -> str:
    """Return a text that Markdown shows as it is, in one line: in a paragraph, a list or a cell of a table."""
    plain = html.escape(one_line(text).strip(), quote=False)  # four spaces at its start would make it code
    return _AT_LINE_START.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\g<0>", plain))


def markdown_code(text: object) -> str:
    """Return a text as code within a line of Markdown, or within a cell of a table."""
    plain = one_line(text)
    if "\\|" in plain:  # in the code of a cell, GitHub takes this bar for the cell's end
        return markdown(text)
    longest = max(map(len, re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    edge = " " if longest or plain != plain.strip() else ""
    return f"{fence}{edge}{plain or ' '}{edge}{fence}".replace("|", "\\|")


def markdown_block(text: str, language: str = "") -> str:
    """Return lines as a block of code that they can't end."""
    plain = visible(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence}{language}\n{plain.rstrip()}\n{fence}"


def yaml_text(content: Any) -> str:
    """Return plain values as YAML, without secrets; other scripts stay readable where all characters are visible."""
    values = without_secrets(content)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if _escaped(text, "\n") != text:
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False)
    return text


def json_text(content: Any, encoding: str = "utf-8") -> str:
    """Return plain values as one JSON document of visible characters that `encoding` has, without secrets.

    Texts are otherwise as they are, so a program reads what is stored. A number that JSON does not have (NaN, infinity)
    is null.
    """
    text = json.dumps(_finite(without_secrets(content)), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), indent=2)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escaped(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a path that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
