"""The script of each byte of a text, and what is code: the classes that a summary counts by.

Letters and marks go by the blocks of their script, whatever else by its general category (digits, superscripts and
fractions of any script are digits). A mark or format character without a script of its own belongs to the character
before it. Emoji are what is shown as one by itself, and symbols and digits with the variation selector U+FE0F.
"""

import functools
import re
import unicodedata

import numpy as np
import numpy.typing as npt

CLASSES = (
    *("Latin", "Greek", "Cyrillic", "Arabic", "Hebrew", "Devanagari", "Thai", "Han", "Kana", "Hangul"),
    *("emoji", "digits", "punctuation and symbols", "whitespace", "other"),
)
_BLOCKS = {
    "Latin": "41-7A AA BA C0-2B8 2E0-2E4 1D00-1D25 1D2C-1D65 1D6B-1DBF 1E00-1EFF 2071-209C 212A-212B 2160-2188 "
    "2C60-2C7F A722-A7FF AB30-AB64 AB66-AB6F FB00-FB06 FF21-FF5A 10780-107BF 1DF00-1DFFF",
    "Greek": "370-3E1 3F0-3FF 1D26-1D2A 1D66-1D6A 1F00-1FFF AB65",
    "Cyrillic": "400-52F 1C80-1C8F 1D2B 2DE0-2DFF A640-A69F",
    "Arabic": "600-6FF 750-77F 870-8FF FB50-FDFF FE70-FEFE 1EE00-1EEFF",
    "Hebrew": "590-5FF FB1D-FB4F",
    "Devanagari": "900-97F A8E0-A8FF 11B00-11B5F",
    "Thai": "E01-E5B",
    "Han": "3005-3007 3021-3029 3038-303B 3400-4DBF 4E00-9FFF F900-FAFF 20000-3FFFF",
    "Kana": "3031-3035 3041-30FF 31F0-31FF FF66-FF9F 1AFF0-1B16F",
    "Hangul": "1100-11FF 3131-318E A960-A97F AC00-D7FF FFA0-FFDC",
}
# shown as a picture without a variation selector (Emoji_Presentation), with room for new ones
_EMOJI = (
    "231A-231B 23E9-23EC 23F0 23F3 25FD-25FE 2614-2615 2648-2653 267F 2693 26A1 26AA-26AB 26BD-26BE 26C4-26C5 "
    "26CE 26D4 26EA 26F2-26F3 26F5 26FA 26FD 2705 270A-270B 2728 274C 274E 2753-2755 2757 2795-2797 27B0 27BF "
    "2B1B-2B1C 2B50 2B55 1F004 1F0CF 1F18E 1F191-1F19A 1F1E6-1F1FF 1F201 1F21A 1F22F 1F232-1F236 1F238-1F23A "
    "1F250-1F251 1F300-1F64F 1F680-1F6FF 1F7E0-1F7F0 1F90C-1F9FF 1FA70-1FAFF"
)
_EMOJI_SELECTOR = 0xFE0F
_INHERITED = len(CLASSES)
_NUMBER = {name: number for number, name in enumerate(CLASSES)}

CODE_LINE = (
    r"[;{}(\[\\]\s*$|\)\s*:\s*$"  # what a statement or block ends in
    r"|\w\(|\w\[\w|\w\.\w+\("  # a call or an index
    r"|[\w)\]\"']\s*(?:[-+*/%|&^]?=|[=!<>]=|=>|->|::|&&|\|\|)\s*[\w(\[{\"'&*-]"  # an assignment or operator
    r"|^\s*(?:[#@]\w|//|/\*|</?\w|import\s+\w+(?:\.\w+)*\s*$|from\s+\S+\s+import\b|(?:else|try|finally)\s*:)"
)
CODE_SHARE = 0.3
"""An example is code where at least so much of its lines that are not blank look like code (`CODE_LINE`)."""


def byte_classes(text: bytes) -> npt.NDArray[np.uint8]:
    """[bytes] the number in `CLASSES` of the character that each byte belongs to. The text is UTF-8."""
    codes = np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)
    classes = _table()[codes]
    may_ask = np.isin(classes[:-1], (_NUMBER["digits"], _NUMBER["punctuation and symbols"]))
    classes[:-1][may_ask & (codes[1:] == _EMOJI_SELECTOR)] = _NUMBER["emoji"]
    _inherit(classes)
    widths = 1 + (codes > 0x7F).astype(np.uint8) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.repeat(classes, widths)


def is_code(text: str) -> bool:
    """Whether a text is taken for code: see `CODE_SHARE`."""
    lines = [line for line in text.split("\n") if line.strip()]
    return bool(lines) and sum(map(bool, map(_code_line().search, lines))) >= CODE_SHARE * len(lines)


@functools.cache
def _code_line() -> re.Pattern[str]:
    return re.compile(CODE_LINE)


def _inherit(classes: npt.NDArray[np.uint8]) -> None:
    """Give each run of marks the class of the character before it; at the start there is none."""
    marks = np.flatnonzero(classes == _INHERITED)
    if not len(marks):
        return
    first = np.diff(marks, prepend=-2) != 1
    before = marks[first] - 1
    bases = np.where(before < 0, _NUMBER["other"], classes[before])
    classes[marks] = bases[np.cumsum(first) - 1]


@functools.cache
def _table() -> npt.NDArray[np.uint8]:
    """[0x110000] the class of each code point; `_INHERITED` for marks without a script."""
    table = np.array([_by_category(unicodedata.category(chr(code))) for code in range(0x110000)], np.uint8)
    may_have_script = np.isin(table, (_NUMBER["other"], _INHERITED))
    for name, blocks in _BLOCKS.items():
        for block in _ranges(blocks):
            table[block][may_have_script[block]] = _NUMBER[name]
    for code in b"\t\n\v\f\r\x1c\x1d\x1e\x1f\x85":  # whitespace, but controls by category
        table[code] = _NUMBER["whitespace"]
    for block in _ranges(_EMOJI):
        table[block] = _NUMBER["emoji"]
    return table


def _by_category(category: str) -> int:
    if category in ("Nd", "No"):
        return _NUMBER["digits"]
    if category[0] in "PS":
        return _NUMBER["punctuation and symbols"]
    if category[0] == "Z":
        return _NUMBER["whitespace"]
    return _INHERITED if category[0] == "M" or category == "Cf" else _NUMBER["other"]


def _ranges(blocks: str) -> list[slice]:
    edges = [block.split("-") for block in blocks.split()]
    return [slice(int(edge[0], 16), int(edge[-1], 16) + 1) for edge in edges]
