"""The script of each byte of a text, and whether a text is code: the classes that a summary counts by.

Unicode's properties, as the library `regex` has them, determine the class of a character. Digits, superscripts and
fractions of any script are digits, and so are punctuation, symbols and white space of any script their own classes. A
mark or format character without a script has the class of the character before it. Emoji are characters that are shown
as pictures, and symbols and digits with the variation selector U+FE0F.
"""

import functools
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]

_SCRIPTS = {
    **{name: (name,) for name in ("Latin", "Greek", "Cyrillic", "Arabic", "Hebrew", "Devanagari", "Thai", "Han")},
    "Kana": ("Hiragana", "Katakana"),
    "Hangul": ("Hangul",),
}
LETTERS = tuple(_SCRIPTS)
CLASSES = (*LETTERS, "emoji", "digits", "punctuation and symbols", "whitespace", "other")

_EMOJI_SELECTOR = 0xFE0F
_INHERITED = len(CLASSES)
_NUMBER = {name: number for number, name in enumerate(CLASSES)}

CODE_LINE = (
    r"[;{}(\[\\]\s*$|\)\s*:\s*$"  # the end of a statement or block
    r"|\w\(|\w\[\w|\w\.\w+\("  # a call or an index
    r"|[\w)\]\"']\s*(?:[-+*/%|&^]?=|[=!<>]=|=>|->|::|&&|\|\|)\s*[\w(\[{\"'&*-]"  # an assignment or operator
    r"|^\s*(?:[#@]\w|//|/\*|</?\w|import\s+\w+(?:\.\w+)*\s*$|from\s+\S+\s+import\b|(?:else|try|finally)\s*:)"
)
CODE_SHARE = 0.3
"""A text is code if at least this share of its non-blank lines match `CODE_LINE`."""


def byte_classes(text: bytes) -> npt.NDArray[np.uint8]:
    """Return, for each byte of a UTF-8 text, the index in `CLASSES` of the character that it belongs to."""
    codes = np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)
    classes = _table()[codes]
    is_symbol = np.isin(classes[:-1], (_NUMBER["digits"], _NUMBER["punctuation and symbols"]))
    classes[:-1][is_symbol & (codes[1:] == _EMOJI_SELECTOR)] = _NUMBER["emoji"]
    _inherit(classes)
    widths = 1 + (codes > 0x7F).astype(np.uint8) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.repeat(classes, widths)


def is_code(text: str) -> bool:
    """Return whether a text counts as code: see `CODE_SHARE`."""
    lines = [line for line in text.split("\n") if line.strip()]
    return bool(lines) and sum(map(bool, map(_code_line().search, lines))) >= CODE_SHARE * len(lines)


@functools.cache
def _code_line() -> re.Pattern[str]:
    return re.compile(CODE_LINE)


def _inherit(classes: npt.NDArray[np.uint8]) -> None:
    """Give each run of marks the class of the character before it, or `other` at the start of the text."""
    marks = np.flatnonzero(classes == _INHERITED)
    if not len(marks):
        return
    first = np.diff(marks, prepend=-2) != 1
    before = marks[first] - 1
    bases = np.where(before < 0, _NUMBER["other"], classes[before])
    classes[marks] = bases[np.cumsum(first) - 1]


@functools.cache
def _table() -> npt.NDArray[np.uint8]:
    """Return the class of each code point [0x110000]; `_INHERITED` for marks without a script."""
    table = np.full(0x110000, _NUMBER["other"], np.uint8)
    # a surrogate is not a character of any text
    characters = "".join("\0" if 0xD800 <= code < 0xE000 else chr(code) for code in range(0x110000))
    for number, character_set in reversed(_character_sets()):
        for run in regex.finditer(f"{character_set}+", characters, regex.VERSION1):
            table[run.start() : run.end()] = number
    return table


def _character_sets() -> list[tuple[int, str]]:
    """Return pairs of a class and a set of characters. A character has the class of the first set that contains it."""
    return [
        # shown as a picture: characters with this presentation, and beyond U+1F000 all that may have it
        (_NUMBER["emoji"], r"[\p{Emoji_Presentation}[\p{Emoji}&&[\U0001F000-\U0001FFFF]]]"),
        (_NUMBER["digits"], r"[\p{Nd}\p{No}]"),
        (_NUMBER["punctuation and symbols"], r"[\p{P}\p{S}]"),
        (_NUMBER["whitespace"], r"[\s\x1C-\x1F\p{Z}]"),
        *_script_sets("Script"),
        (_INHERITED, r"[\p{M}\p{Cf}]"),
        # letters that several scripts share: U+30FC is in both kinds of kana
        *_script_sets("Script_Extensions"),
    ]


def _script_sets(unicode_property: str) -> Iterator[tuple[int, str]]:
    for name, scripts in _SCRIPTS.items():
        yield _NUMBER[name], "[" + "".join(f"\\p{{{unicode_property}={script}}}" for script in scripts) + "]"
