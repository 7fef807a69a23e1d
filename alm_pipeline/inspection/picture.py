"""What a picture of an example shows: its header, its legend, its colors, and its chunks with both sides' tokens.

`page` renders it as HTML, which a browser lays out, and `drawing` as PNG. No library that pip installs alone turns such
a page into a PNG: WeasyPrint and CairoSVG need system libraries, Playwright downloads a browser, and resvg neither lays
text out nor spells out characters that no font has.

Texts are untrusted: whatever is not visible by itself (blanks, controls, text direction, marks without a base, bytes
that are not whole characters) is spelled out, so that nothing hides or moves what is around it.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alm_pipeline.alignment.visibility import Visibility, seen_by
from alm_pipeline.inspection.shards import SIDES, Shard, read_shard, related
from alm_pipeline.inspection.token_texts import TokenTexts
from storage.columns import flatten_lists
from storage.dataset import Dataset
from storage.errors import UserError
from storage.printed.inert import one_line
from storage.printed.shares import percent
from storage.schemas import ChunkKind, TokenKind

_BLANKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}
# joiners and variation selectors change the characters around them
_JOINERS = ("\u200c", "\u200d", "\ufe0e", "\ufe0f")


@dataclass(frozen=True)
class Box:
    """A token, or a chunk's text."""

    label: str
    """the text shown: one line, without blanks"""
    note: str
    """further facts, for a tooltip"""


@dataclass(frozen=True)
class PicturedChunk:
    """A chunk's text, and the tokens of both sides."""

    kind: ChunkKind
    number: int
    """its number among the content chunks, from which its color follows"""
    assistant: bool
    text: Box
    tokens: dict[str, list[Box]]
    role: str | None
    """the role of the turn that begins here, or None"""
    ends_line: bool
    """whether its text ends a line"""
    seen_by: str | None = None
    """who sees its bytes, of SEEN_BY; None if it has none"""

    @property
    def style(self) -> str:
        """The key in `LEGEND`: `first` and `second` alternate for content."""
        if self.kind == ChunkKind.UNPAIRED and self.seen_by in ("teacher", "student", "neither"):
            return f"seen_by_{self.seen_by}"
        return ("first", "second")[self.number % 2] if self.kind == ChunkKind.CONTENT else self.kind.name.lower()


LEGEND = {
    "first": "chunk",
    "second": "next chunk",
    "paired": "paired special tokens",
    "unpaired": "unpaired: not compared",
    "seen_by_teacher": "only the teacher sees it",
    "seen_by_student": "only the student sees it",
    "seen_by_neither": "neither side sees it",
}
"""the meaning of each style of a chunk"""
ASSISTANT_LEGEND = "the assistant’s"
"""the meaning of an underlined text"""


class Colors(NamedTuple):
    """CSS colors of a theme."""

    paper: str
    ink: str
    faint: str
    """of the header and the legend"""
    token: str
    token_frame: str
    chunks: dict[str, tuple[str, str]]
    """fill and frame by style"""


# tints of Okabe and Ito's sky blue, orange, bluish green, vermilion and reddish purple, which color-blind people can
# distinguish
LIGHT = Colors(
    paper="#ffffff",
    ink="#1a1a1a",
    faint="#5f5f5f",
    token="#ffffff",
    token_frame="#9a9a9a",
    chunks={
        "first": ("#cfe8f9", "#4a9fd4"),
        "second": ("#fbe2b0", "#c98a00"),
        "paired": ("#c4ecdf", "#00805d"),
        "unpaired": ("#eeeeee", "#888888"),
        "seen_by_teacher": ("#f9d3bd", "#d55e00"),
        "seen_by_student": ("#f0d3e2", "#b8508a"),
        "seen_by_neither": ("#ffffff", "#888888"),
    },
)
DARK = Colors(
    paper="#16181b",
    ink="#ececec",
    faint="#a5a5a5",
    token="#22262b",
    token_frame="#696b6f",
    chunks={
        "first": ("#17455f", "#56b4e9"),
        "second": ("#553d08", "#e69f00"),
        "paired": ("#0c4a3a", "#1fc79a"),
        "unpaired": ("#2c2f33", "#999999"),
        "seen_by_teacher": ("#5c2a05", "#ff8a3d"),
        "seen_by_student": ("#4d2039", "#e08ab8"),
        "seen_by_neither": ("#16181b", "#999999"),
    },
)


@dataclass(frozen=True)
class Picture:
    """The first chunks of an example, and the facts of its header."""

    example: str
    tokenizers: dict[str, str]
    facts: list[str]
    chunks: list[PicturedChunk]
    left: int
    """number of chunks that are not shown"""

    @property
    def title(self) -> str:
        """The heading."""
        return one_line(f"example {self.example}")

    @property
    def header(self) -> list[str]:
        """The lines under the title."""
        return [
            one_line(f"above: teacher’s tokens, {self.tokenizers['teacher']}"),
            one_line(f"below: student’s tokens, {self.tokenizers['student']}"),
            " · ".join(self.facts),
        ]

    @property
    def legend(self) -> dict[str, str]:
        """The meaning of each style that occurs."""
        used = {chunk.style for chunk in self.chunks}
        return {style: meaning for style, meaning in LEGEND.items() if style in used}

    @property
    def has_assistant(self) -> bool:
        """Whether a chunk is the assistant's."""
        return any(chunk.assistant for chunk in self.chunks)

    @property
    def footer(self) -> list[str]:
        """The lines under the chunks."""
        return [f"{self.left:,} more chunks are not shown."] if self.left else []


def picture(url: str, example: str | None = None, shard: int = 0, chunks: int = 200) -> Picture:
    """Return a picture of the first chunks of an example, by default of the shard's first example that has chunks.

    Raises UserError if the URL holds no alignments, or the shard or example does not exist or has no chunks.
    """
    content = read_shard(url, shard, example)
    if not len(content.chunks.starts):
        what = f"example {example}" if example else f"shard {shard}"
        raise UserError(f"{url}: {what} has no chunks (dropped, or empty); choose another with --shard or --example")
    row = int(content.chunks.examples[0])
    one = read_shard(url, shard, content.texts.ids[row].as_py())
    datasets = related(url)
    spelling = {side: TokenTexts(datasets[side]) for side in SIDES}
    shown = _chunks(one, min(chunks, len(one.chunks.starts)), spelling)
    return Picture(
        example=one.texts.ids[0].as_py(),
        tokenizers=_tokenizers(datasets),
        facts=_facts(one),
        chunks=shown,
        left=len(one.chunks.starts) - len(shown),
    )


def visible(text: bytes) -> str:
    """Return a label for bytes: ␣ ⏎ ⇥ for blanks, ⟨E4 BD⟩ for part of a character, ⟨U+200F⟩ for an invisible one."""
    parts = _parts(text)
    # joiners and marks need a character before them
    bare = bool(parts) and parts[0] in _JOINERS
    label = (_code_point(str(parts[0])) if bare else "") + "".join(map(_visible_part, parts[bare:]))
    return f"◌{label}" if label and unicodedata.category(label[0])[0] == "M" else label


def _parts(text: bytes) -> list[str | bytes]:
    """Split bytes into whole characters, as strings, and the bytes between them."""
    decoded = text.decode(errors="surrogateescape")
    parts: list[str | bytes] = []
    for char in decoded:
        byte = bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else b""
        if byte and parts and isinstance(parts[-1], bytes):
            parts[-1] += byte
        else:
            parts.append(byte or char)
    return parts


def _visible_part(part: str | bytes) -> str:
    if isinstance(part, bytes):
        return f"⟨{part.hex(' ').upper()}⟩"
    if part in _BLANKS:
        return _BLANKS[part]
    hidden = unicodedata.category(part)[0] in "CZ" or part in "\u115f\u1160\u3164\uffa0\u2800"
    return _code_point(part) if hidden and part not in _JOINERS else part


def _code_point(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩"


def _tokenizers(datasets: dict[str, Dataset]) -> dict[str, str]:
    """Return the tokenizers' names, which follow the examples' label in the datasets' labels."""
    corpus = f"{datasets['examples'].label}-"
    return {side: datasets[side].label.removeprefix(corpus) for side in SIDES}


def _facts(one: Shard) -> list[str]:
    chunks, size = one.chunks, len(one.texts.content)
    aligned = int(chunks.lengths[chunks.kinds == ChunkKind.CONTENT].sum())
    counts = [f"{len(one.sides[side].ids):,} {side} tokens" for side in SIDES]
    share = f"{percent(aligned, size, 1)} of them aligned" if size else "nothing to align"
    return [f"{size:,} bytes", share, *_one_sided(one), f"{len(chunks.starts):,} chunks", *counts]


def _one_sided(one: Shard) -> list[str]:
    """Return a fact for each side that alone sees some bytes."""
    sizes = one.visibility().sum(0).tolist()
    seen = {"teacher": sizes[Visibility.TEACHER_ONLY], "student": sizes[Visibility.STUDENT_ONLY]}
    return [f"{size:,} only the {side} sees" for side, size in seen.items() if size]


def _chunks(one: Shard, count: int, spelling: Mapping[str, TokenTexts]) -> list[PicturedChunk]:
    boxes = {side: _token_boxes(one, side, int(one.chunks.edges(side)[count]), spelling[side]) for side in SIDES}
    edges = {side: one.chunks.edges(side).tolist() for side in SIDES}
    kinds = one.chunks.kinds[:count]
    content_before = (np.cumsum(kinds == ChunkKind.CONTENT) - 1).tolist()
    roles, visibility = _new_roles(one, count), one.visibility()
    seen = seen_by(visibility)
    chunks = []
    for k in range(count):
        text = _bytes(one, int(one.chunks.starts[k]), int(one.chunks.lengths[k]))
        note = f"chunk {k}, {_span(int(one.chunks.starts[k]), len(text))}{_seen_note(visibility[k].tolist())}"
        tokens = {side: boxes[side][edges[side][k] : edges[side][k + 1]] for side in SIDES}
        kind, assistant = ChunkKind(kinds[k]), bool(one.chunks.assistant[k])
        chunks.append(
            PicturedChunk(
                kind,
                content_before[k],
                assistant,
                Box(visible(text), note),
                tokens,
                roles[k],
                text.endswith(b"\n"),
                seen[k],
            )
        )
    return chunks


def _seen_note(sizes: list[int]) -> str:
    """Return how many of a chunk's bytes one side alone sees, or neither; '' if both see all."""
    seen = {
        "only the teacher sees": sizes[Visibility.TEACHER_ONLY],
        "only the student sees": sizes[Visibility.STUDENT_ONLY],
        "neither side sees": sizes[Visibility.UNSEEN],
    }
    return "".join(f", {size} of them {who}" for who, size in seen.items() if size)


def _token_boxes(one: Shard, side: str, count: int, spelling: TokenTexts) -> list[Box]:
    tokens = one.sides[side]
    columns = (tokens.ids, tokens.starts, tokens.lengths, tokens.kinds)
    return [
        Box(_token_label(_bytes(one, start, length), id_, kind, spelling), _token_note(id_, start, length, kind))
        for id_, start, length, kind in zip(*(column[:count].tolist() for column in columns), strict=True)
    ]


def _token_label(text: bytes, id_: int, kind: int, spelling: TokenTexts) -> str:
    """Return the label of a token; for one without bytes its own text if that is known, its role, or else its id."""
    if text:
        return visible(text)
    if own := spelling.of(id_):
        return f"‹{visible(own)}›"
    return f"‹{_kind_name(kind)}›" if kind >= TokenKind.BEGIN_OF_TEXT else f"‹{id_}›"


def _token_note(id_: int, start: int, length: int, kind: int) -> str:
    return f"id {id_}, {_span(start, length)}" + ("" if kind == TokenKind.CONTENT else f", {_kind_name(kind)}")


def _kind_name(kind: int) -> str:
    return TokenKind(kind).name.lower().replace("_", " ")


def _span(start: int, length: int) -> str:
    return f"bytes {start}–{start + length} ({length})" if length else f"no bytes, at {start}"


def _bytes(one: Shard, start: int, length: int) -> bytes:
    return one.texts.content[start : start + length].tobytes()


def _new_roles(one: Shard, count: int) -> list[str | None]:
    """Return the role for each chunk that begins a turn, otherwise None."""
    turns = one.turns()[:count]
    begins = (turns >= 0) & (np.diff(turns, prepend=-1) != 0)
    roles, _ = flatten_lists(one.tables["teacher"]["roles"])
    return [one_line(roles[turn]) if begin else None for turn, begin in zip(turns, begins, strict=True)]
