"""What the tokens of a rendered conversation cover: bytes of the contents, or a part of the template's own text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alm_pipeline.tokenization.chat.template import RenderedConversation
from alm_pipeline.tokenization.rows import Uncovered
from alm_pipeline.tokenization.spans import Spans
from storage.schemas import TokenKind

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Covering:
    """[tokens] each token's number of content bytes, its TokenKind and its section; and the bytes that none covers."""

    byte_lengths: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]
    turns: npt.NDArray[np.int16]
    uncovered: Uncovered


def cover(rendering: RenderedConversation, spans: Spans, section_ends: Ints) -> Covering:
    """Return the covering of a rendering's tokens. `section_ends` [sections] are bytes of the shared text."""
    first, last = _first_and_last(rendering, spans)
    shown = _ContentBytes(rendering)
    lengths = shown.before(spans.ends, last) - shown.before(spans.starts, first)
    # a token that covers spans of several kinds has none of those kinds
    kinds = np.where(lengths > 0, TokenKind.MIXED, TokenKind.TEMPLATE)
    kinds = np.where((first == last) & ((lengths > 0) | ~shown.is_content[first]), rendering.kinds[first], kinds)
    uncovered = _omitted(rendering, spans, section_ends) + _removed(shown, spans, first, last)
    total = int(section_ends[-1]) if len(section_ends) else 0
    assert lengths.sum() + sum(size for _, size in uncovered) == total, "contents are neither covered nor uncovered"
    at, sizes = np.array(sorted(uncovered, key=lambda run: run[0]), dtype=np.int64).reshape(-1, 2).T
    return Covering(
        lengths.astype(np.int32), kinds.astype(np.uint8), rendering.turns[last].astype(np.int16), Uncovered(at, sizes)
    )


def up_to(rendering: RenderedConversation, size: int) -> RenderedConversation:
    """Return the rendering up to this number of bytes, which must not be within a character."""
    count = int(np.searchsorted(rendering.ends, size, side="left")) + 1
    return RenderedConversation(
        rendering.text.encode()[:size].decode(errors="ignore"),
        rendering.ends[:count].clip(max=size),
        rendering.kinds[:count],
        rendering.turns[:count],
        rendering.content_starts[:count],
    )


def _first_and_last(rendering: RenderedConversation, spans: Spans) -> tuple[Ints, Ints]:
    """Return the first and the last span [tokens] of the rendering that each token covers."""
    first = np.searchsorted(rendering.ends, spans.starts, side="right").clip(max=len(rendering.ends) - 1)
    last = np.searchsorted(rendering.ends, spans.ends - 1, side="right")
    return first, np.where(spans.ends > spans.starts, last, first)


class _ContentBytes:
    """Counts the content bytes in a rendering's text."""

    def __init__(self, rendering: RenderedConversation) -> None:
        self.is_content = rendering.kinds == TokenKind.CONTENT
        self._starts = span_starts(rendering)
        sizes = np.where(self.is_content, rendering.ends - self._starts, 0)
        self._before = np.cumsum(sizes) - sizes

    def before(self, positions: Ints, parts: Ints) -> Ints:
        """Return the number of content bytes before these positions, which are in, or at the end of, these parts."""
        inside = np.where(self.is_content[parts], positions - self._starts[parts], 0)
        counts: Ints = self._before[parts] + inside
        return counts


def span_starts(rendering: RenderedConversation) -> Ints:
    """Return the start [P] of each of the rendering's spans in bytes of its text."""
    return np.concatenate([[0], rendering.ends[:-1]])


def _removed(shown: _ContentBytes, spans: Spans, first: Ints, last: Ints) -> list[tuple[int, int]]:
    """Return the content that the template shows and the tokenizer removes, as (token that follows, bytes)."""
    if np.array_equal(spans.starts[1:], spans.ends[:-1]):
        return []
    gaps = shown.before(spans.starts, first)[1:] - shown.before(spans.ends, last)[:-1]
    return [(at + 1, int(gaps[at])) for at in np.flatnonzero(gaps).tolist()]


def _omitted(rendering: RenderedConversation, spans: Spans, section_ends: Ints) -> list[tuple[int, int]]:
    """Return the content that the template does not show, as (token that follows, bytes)."""
    parts = np.flatnonzero(rendering.kinds == TokenKind.CONTENT)
    starts = rendering.content_starts[parts]
    ends = starts + (rendering.ends - span_starts(rendering))[parts]
    if len(section_ends) == 0 or (ends - starts).sum() == section_ends[-1]:
        return []
    runs = []
    for turn, (begin, end) in enumerate(zip(np.insert(section_ends, 0, 0), section_ends, strict=False)):
        shown = parts[(starts >= begin) & (starts < end)]
        edges = [begin, *np.stack([starts, ends], 1)[np.isin(parts, shown)].ravel().tolist(), end]
        for index, (gap_start, gap_end) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
            if gap_end > gap_start:
                runs.append(
                    (_next_token(rendering, spans, shown[:index], shown[index:], turn), int(gap_end - gap_start))
                )
    return runs


def _next_token(rendering: RenderedConversation, spans: Spans, before: Ints, after: Ints, turn: int) -> int:
    """Return the token that follows bytes of a section which are omitted between these spans of its content."""
    if len(before):
        return int(np.searchsorted(spans.starts, rendering.ends[before[-1]]))
    if len(after):
        return int(np.searchsorted(spans.ends, span_starts(rendering)[after[0]], side="right"))
    # nothing of the section is shown: take what ends its turn, or what follows the turn
    later = (rendering.turns > turn) | ((rendering.turns == turn) & (rendering.kinds >= TokenKind.END_OF_TURN))
    following = np.flatnonzero(later)
    if not len(following):
        return len(spans.starts)
    return int(np.searchsorted(spans.ends, span_starts(rendering)[following[0]], side="right"))
