"""What the tokens of a rendered conversation stand for: which bytes of the contents, or which part of the scaffold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alm_pipeline.tokenization.chat.template import Rendering
from alm_pipeline.tokenization.rows import Uncovered
from alm_pipeline.tokenization.spans import Spans
from storage.schemas import TokenKind

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Covering:
    """[tokens] bytes of the joined contents that each covers, its TokenKind and its message; and what none covers."""

    byte_lengths: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]
    turns: npt.NDArray[np.int16]
    uncovered: Uncovered


def cover(rendering: Rendering, spans: Spans, message_ends: Ints) -> Covering:
    """The covering of a rendering's tokens. `message_ends` [messages] are byte positions in the joined contents."""
    first, last = _parts(rendering, spans)
    shown = _ContentBytes(rendering)
    lengths = shown.before(spans.ends, last) - shown.before(spans.starts, first)
    # a token over parts of several kinds is none of them
    kinds = np.where(lengths > 0, TokenKind.MIXED, TokenKind.TEMPLATE)
    kinds = np.where((first == last) & ((lengths > 0) | ~shown.is_content[first]), rendering.kinds[first], kinds)
    uncovered = _left_out(rendering, spans, message_ends) + _thrown_away(shown, spans, first, last)
    total = int(message_ends[-1]) if len(message_ends) else 0
    assert lengths.sum() + sum(size for _, size in uncovered) == total, "contents are neither covered nor uncovered"
    at, sizes = np.array(sorted(uncovered, key=lambda run: run[0]), dtype=np.int64).reshape(-1, 2).T
    return Covering(
        lengths.astype(np.int32), kinds.astype(np.uint8), rendering.turns[last].astype(np.int16), Uncovered(at, sizes)
    )


def _parts(rendering: Rendering, spans: Spans) -> tuple[Ints, Ints]:
    """([tokens], [tokens]) the first and the last of the rendering's parts that each token covers."""
    first = np.searchsorted(rendering.ends, spans.starts, side="right").clip(max=len(rendering.ends) - 1)
    last = np.searchsorted(rendering.ends, spans.ends - 1, side="right")
    return first, np.where(spans.ends > spans.starts, last, first)


class _ContentBytes:
    """Counts the content bytes in a rendering's text."""

    def __init__(self, rendering: Rendering) -> None:
        self.is_content = rendering.kinds == TokenKind.CONTENT
        self._starts = part_starts(rendering)
        sizes = np.where(self.is_content, rendering.ends - self._starts, 0)
        self._before = np.cumsum(sizes) - sizes

    def before(self, positions: Ints, parts: Ints) -> Ints:
        """The content bytes before these positions of the text, which lie in, or at the end of, these parts."""
        inside = np.where(self.is_content[parts], positions - self._starts[parts], 0)
        counts: Ints = self._before[parts] + inside
        return counts


def part_starts(rendering: Rendering) -> Ints:
    """[P] where each part of the rendering begins, in bytes of its text."""
    return np.concatenate([[0], rendering.ends[:-1]])


def _thrown_away(shown: _ContentBytes, spans: Spans, first: Ints, last: Ints) -> list[tuple[int, int]]:
    """Content that the template shows and the tokenizer throws away: (before which token, bytes)."""
    if np.array_equal(spans.starts[1:], spans.ends[:-1]):
        return []
    gaps = shown.before(spans.starts, first)[1:] - shown.before(spans.ends, last)[:-1]
    return [(at + 1, int(gaps[at])) for at in np.flatnonzero(gaps).tolist()]


def _left_out(rendering: Rendering, spans: Spans, message_ends: Ints) -> list[tuple[int, int]]:
    """Content that the template does not show: (before which token, bytes)."""
    parts = np.flatnonzero(rendering.kinds == TokenKind.CONTENT)
    starts = rendering.content_starts[parts]
    ends = starts + (rendering.ends - part_starts(rendering))[parts]
    if len(message_ends) == 0 or (ends - starts).sum() == message_ends[-1]:
        return []
    runs = []
    for turn, (begin, end) in enumerate(zip(np.insert(message_ends, 0, 0), message_ends, strict=False)):
        own = parts[(starts >= begin) & (starts < end)]
        edges = [begin, *np.stack([starts, ends], 1)[np.isin(parts, own)].ravel().tolist(), end]
        for index, (gap_start, gap_end) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
            if gap_end > gap_start:
                runs.append((_place(rendering, spans, own[:index], own[index:], turn), int(gap_end - gap_start)))
    return runs


def _place(rendering: Rendering, spans: Spans, before: Ints, behind: Ints, turn: int) -> int:
    """The token before which a message's bytes stand that are left out between these parts of it."""
    if len(before):
        return int(np.searchsorted(spans.starts, rendering.ends[before[-1]]))
    if len(behind):
        return int(np.searchsorted(spans.ends, part_starts(rendering)[behind[0]], side="right"))
    # nothing of the message is shown: before what ends it, or what comes after it
    later = (rendering.turns > turn) | ((rendering.turns == turn) & (rendering.kinds >= TokenKind.END_OF_TURN))
    following = np.flatnonzero(later)
    if not len(following):
        return len(spans.starts)
    return int(np.searchsorted(spans.ends, part_starts(rendering)[following[0]], side="right"))
