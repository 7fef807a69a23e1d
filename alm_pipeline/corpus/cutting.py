"""Cuts texts to a number of bytes, at sensible places and without dropping text.

A piece ends at the last place of the best kind in its window: after a blank line, else after a line, else after a
sentence, else before a space (tokens begin with spaces), else between two characters. Only the second half of the
window counts, so that pieces are not tiny. Cutting works on UTF-8 bytes and reads each window a fixed number of times,
so the time is linear in the length of the text, whatever the lengths of its lines.
"""

import re

import regex  # type: ignore[import-untyped]

MIN_PIECE_BYTES = 16

# matches up to the last blank line: the leading `.*` is greedy and backtracks from the end
_BLANK_LINE = re.compile(rb"(?s:.*)\n[ \t\r]*\n")
# plain searches for a few dozen endings: one pattern takes five times as long where it almost matches
_ENDINGS_BEFORE_SPACE = [
    *[(sign + closer).encode() for sign in ".!?" for closer in ["", '"', "'", ")", "”", "’", "»"]],
    *[sign.encode() for sign in "…؟۔।።"],
]
_ENDINGS_ANYWHERE = [(sign + closer).encode() for sign in "。！？" for closer in ["", "」", "』", "”", "）"]]
_GRAPHEME = regex.compile(r"\X")
# to see where a grapheme ends that begins before the cut: enough for the longest emoji in use
_GRAPHEME_BYTES = 64


def cut_text(text: str, max_bytes: int) -> list[str]:
    """Return pieces that concatenate to `text`, none empty, each of at most `max_bytes` bytes of UTF-8.

    `max_bytes` is at least 16. A piece is white space only if the text has so much of it that it fits into no other
    piece.
    """
    if max_bytes < MIN_PIECE_BYTES:
        raise ValueError(f"max_bytes is {max_bytes}, but must be at least {MIN_PIECE_BYTES}")
    data = text.encode()
    pieces, start = [], 0
    while len(data) - start > max_bytes:
        # at least a quarter of a piece remains, so that no text ends in a scrap
        size = min(max_bytes, len(data) - start - max_bytes // 4)
        end = cut_place(data, start, start + size // 2, start + size)
        pieces.append(data[start:end].decode())
        start = end
    if start < len(data):
        pieces.append(data[start:].decode())
    return _join_blank(pieces, max_bytes)


def cut_place(data: bytes, start: int, low: int, high: int) -> int:
    """Return the best place in (low, high] to end the piece that begins at `start`; `high` is inside of `data`."""
    if sentence_end := sentence_place(data, low, high):
        return sentence_end
    space = max(data.rfind(b" ", low + 1, high + 1), data.rfind(b"\t", low + 1, high + 1))
    return space if space > 0 else _character_boundary(data, start, low, high)


def sentence_place(data: bytes, low: int, high: int) -> int:
    """Return the last blank line, line end or end of a sentence in (low, high], in this order, 0 if there is none."""
    if blank_line := _BLANK_LINE.match(data, low, high):
        return blank_line.end()
    return data.rfind(b"\n", low, high) + 1 or _last_sentence_end(data, low, high)


def _last_sentence_end(data: bytes, low: int, high: int) -> int:
    """Return the last end of a sentence in (low, high], 0 if there is none."""
    ends = [_last_end(data, ending + b" ", low, high + 1) - 1 for ending in _ENDINGS_BEFORE_SPACE]
    ends += [_last_end(data, ending, low, high) for ending in _ENDINGS_ANYWHERE]
    return max(0, *ends)


def _last_end(data: bytes, ending: bytes, low: int, high: int) -> int:
    start = data.rfind(ending, low, high)
    return 0 if start < 0 else start + len(ending)


def _character_boundary(data: bytes, start: int, low: int, high: int) -> int:
    """Return the last place in (low, high] between two graphemes (UAX 29), or between two characters if there is none.

    `start` is a place between two graphemes, from which they are counted: in a run of flags the cut depends on it.
    """
    end = _character_start(data, high)
    if data[end - 1 : end + 1].isalnum():  # two ASCII letters or digits, as in a long line of base64
        return end
    boundary = start
    for grapheme in _GRAPHEME.finditer(data[start : high + _GRAPHEME_BYTES].decode(errors="ignore")):
        following = boundary + len(grapheme[0].encode())
        if following > end:
            break
        boundary = following
    return boundary if boundary > low else end


def _character_start(data: bytes, place: int) -> int:
    """Return the start of the character that the byte at `place` belongs to."""
    while data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def _join_blank(pieces: list[str], max_bytes: int) -> list[str]:
    """Join pieces of only white space to the piece before, if it has room."""
    joined: list[str] = []
    for piece in pieces:
        if joined and piece.isspace() and len((joined[-1] + piece).encode()) <= max_bytes:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def split_text(text: str, at: int) -> tuple[str, str]:
    """Split a text at a byte between two characters."""
    data = text.encode()
    return data[:at].decode(), data[at:].decode()
