"""What a picture of an example shows, whatever it is drawn with: its chunks, with both sides' tokens as labels.

Texts are untrusted: whatever has no shape of its own (blanks, controls, text direction, marks without a base, bytes
that are no whole character) is spelt out, so that nothing hides or moves what stands around it.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np

from alm_pipeline.inspection.shards import SIDES, Shard, read_shard, related
from storage.columns import flatten_lists
from storage.dataset import Dataset
from storage.errors import UserError
from storage.schemas import ChunkKind, TokenKind

_BLANKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}
# joiners and variation selectors shape the characters around them
_JOINERS = ("\u200c", "\u200d", "\ufe0e", "\ufe0f")


@dataclass(frozen=True)
class Box:
    """A token, or a chunk's text."""

    label: str
    """what to show: one line, without blanks"""
    note: str
    """what else there is to know of it"""


@dataclass(frozen=True)
class PicturedChunk:
    kind: ChunkKind
    number: int
    """among the content chunks: neighbors have different colors"""
    assistant: bool
    text: Box
    tokens: dict[str, list[Box]]
    role: str | None
    """the role whose turn begins here"""
    ends_line: bool

    @property
    def style(self) -> str:
        """`first` and `second` take turns for content; `paired` and `unpaired` as they are."""
        return ("first", "second")[self.number % 2] if self.kind == ChunkKind.CONTENT else self.kind.name.lower()


LEGEND = {
    "first": "chunk",
    "second": "next chunk",
    "paired": "paired special tokens",
    "unpaired": "unpaired: not compared",
}


@dataclass(frozen=True)
class Picture:
    """The first chunks of an example, and what its header says."""

    example: str
    tokenizers: dict[str, str]
    facts: list[str]
    chunks: list[PicturedChunk]
    left: int
    """chunks that are not shown"""


def picture(url: str, example: str | None = None, shard: int = 0, chunks: int = 200) -> Picture:
    """The first chunks of an example; without its id, of the shard's first example that has chunks.

    Raises UserError when the URL holds no alignments, or the shard or example is not there or has no chunks.
    """
    content = read_shard(url, shard, example)
    if not len(content.chunks.starts):
        what = f"example {example}" if example else f"shard {shard}"
        raise UserError(f"{url}: {what} has no chunks (dropped, or empty); choose another with --shard or --example")
    row = int(content.chunks.examples[0])
    one = read_shard(url, shard, content.texts.ids[row].as_py())
    shown = _chunks(one, min(chunks, len(one.chunks.starts)))
    return Picture(
        example=one.texts.ids[0].as_py(),
        tokenizers=_tokenizers(related(url)),
        facts=_facts(one),
        chunks=shown,
        left=len(one.chunks.starts) - len(shown),
    )


def visible(text: bytes) -> str:
    """A label for bytes: ␣ ⏎ ⇥ for blanks, ⟨E4 BD⟩ for what is no whole character, ⟨U+200F⟩ for what has no shape."""
    parts = _parts(text)
    # joiners and marks need something before them
    bare = bool(parts) and parts[0] in _JOINERS
    label = (_code_point(str(parts[0])) if bare else "") + "".join(map(_visible_part, parts[bare:]))
    return f"◌{label}" if label and unicodedata.category(label[0])[0] == "M" else label


def _parts(text: bytes) -> list[str | bytes]:
    """Whole characters as strings, and the bytes between them."""
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
    """Their names, as the datasets' labels have them behind the examples' label."""
    corpus = f"{datasets['examples'].label}-"
    return {side: datasets[side].label.removeprefix(corpus) for side in SIDES}


def _facts(one: Shard) -> list[str]:
    chunks, size = one.chunks, len(one.texts.content)
    aligned = int(chunks.lengths[chunks.kinds == ChunkKind.CONTENT].sum())
    counts = [f"{len(one.sides[side].ids):,} {side} tokens" for side in SIDES]
    share = f"{aligned / size:.1%} of them aligned" if size else "nothing to align"
    return [f"{size:,} bytes", share, f"{len(chunks.starts):,} chunks", *counts]


def _chunks(one: Shard, count: int) -> list[PicturedChunk]:
    boxes = {side: _token_boxes(one, side, int(one.chunks.edges(side)[count])) for side in SIDES}
    edges = {side: one.chunks.edges(side).tolist() for side in SIDES}
    kinds = one.chunks.kinds[:count]
    content_before = (np.cumsum(kinds == ChunkKind.CONTENT) - 1).tolist()
    roles = _new_roles(one, count)
    found = []
    for k in range(count):
        text = _bytes(one, int(one.chunks.starts[k]), int(one.chunks.lengths[k]))
        note = f"chunk {k}, {_span(int(one.chunks.starts[k]), len(text))}"
        tokens = {side: boxes[side][edges[side][k] : edges[side][k + 1]] for side in SIDES}
        kind, assistant = ChunkKind(kinds[k]), bool(one.chunks.assistant[k])
        found.append(
            PicturedChunk(
                kind, content_before[k], assistant, Box(visible(text), note), tokens, roles[k], text.endswith(b"\n")
            )
        )
    return found


def _token_boxes(one: Shard, side: str, count: int) -> list[Box]:
    tokens = one.sides[side]
    columns = (tokens.ids, tokens.starts, tokens.lengths, tokens.kinds)
    return [
        Box(_token_label(_bytes(one, start, length), id_, kind), _token_note(id_, start, length, kind))
        for id_, start, length, kind in zip(*(column[:count].tolist() for column in columns), strict=True)
    ]


def _token_label(text: bytes, id_: int, kind: int) -> str:
    """A token without bytes shows its role, or else its id."""
    if text:
        return visible(text)
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
    """Where a turn begins, its role."""
    turns = one.turns()[:count]
    begins = (turns >= 0) & (np.diff(turns, prepend=-1) != 0)
    roles, _ = flatten_lists(one.tables["teacher"]["roles"])
    return [str(roles[turn]) if begin else None for turn, begin in zip(turns, begins, strict=True)]
