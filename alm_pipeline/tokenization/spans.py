"""The exact spans, in bytes, that a text's tokens cover.

Usually the tokens' spellings, concatenated, are the text. Three deviations from that are handled:

- the tokenizer puts a space in front of each stretch of text between added tokens (a dummy prefix): the first token of
  the stretch covers one byte less than it spells;
- an added token absorbs the white space beside its literal: it covers that too;
- the tokenizer removes white space (WordPiece): no token covers it.

Anything else is not traced, and the example is dropped.
"""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.vocabulary.byte_view import ByteView

Ints = npt.NDArray[np.int64]

# Unicode's White_Space, which `tokenizers` uses; Python's \s has four more control characters
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACE_RUN = re.compile(b"(?:%s)*" % b"|".join(re.escape(space.encode()) for space in _SPACES))


class Spans(NamedTuple):
    """Byte positions [tokens]: token k covers the text from starts[k] to ends[k]. Gaps between tokens are uncovered."""

    starts: Ints
    ends: Ints


def token_spans(view: ByteView, ids: npt.NDArray[np.int32], added: npt.NDArray[np.bool_], text: bytes) -> Spans | None:
    """Return the tokens' spans, or None if the tokens spell a different text.

    `added` [tokens] is a mask of the tokens that were cut out of the text by their literal, before all other steps.
    """
    if view.spell(ids) == text:
        lengths = view.lengths[ids]
        ends = np.cumsum(lengths, dtype=np.int64)
        return Spans(ends - lengths, ends)
    return _walk(view, ids, added, text)


def _walk(view: ByteView, ids: npt.NDArray[np.int32], added: npt.NDArray[np.bool_], text: bytes) -> Spans | None:
    starts, ends = np.zeros((2, len(ids)), dtype=np.int64)
    position = first = 0
    for cut in [*np.flatnonzero(added).tolist(), len(ids)]:
        literal = _Literal.of(view, int(ids[cut])) if cut < len(ids) else None
        stretch = _stretch(view, ids[first:cut], text, position, literal)
        if stretch is None:
            return None
        starts[first:cut], ends[first:cut] = stretch
        position = int(stretch.ends[-1]) if cut > first else position
        position = _past_space(text, position) if view.drops_space else position
        if not _continues(text, position, literal):
            return None
        if literal is not None:
            starts[cut], ends[cut] = literal.span(text, position)
            position, first = int(ends[cut]), cut + 1
    return Spans(starts, ends)


def _past_space(text: bytes, position: int) -> int:
    match = _SPACE_RUN.match(text, position)
    assert match is not None
    return match.end()


class _Literal(NamedTuple):
    """An added token's literal, and whether the token absorbs the white space before and after it."""

    spelling: bytes
    absorbs_before: bool
    absorbs_after: bool

    @classmethod
    def of(cls, view: ByteView, id_: int) -> "_Literal":
        return cls(view.spelling[id_], *view.added[id_])

    def is_at(self, text: bytes, position: int) -> bool:
        return text.startswith(self.spelling, _past_space(text, position) if self.absorbs_before else position)

    def span(self, text: bytes, position: int) -> tuple[int, int]:
        end = (_past_space(text, position) if self.absorbs_before else position) + len(self.spelling)
        return position, _past_space(text, end) if self.absorbs_after else end


def _stretch(
    view: ByteView, ids: npt.NDArray[np.int32], text: bytes, position: int, follows: _Literal | None
) -> Spans | None:
    """Return the spans of the tokens up to the next added token, whose literal has to follow right after them."""
    lengths = view.lengths[ids].astype(np.int64)
    spelled = view.spell(ids)
    for prefix in (0, 1) if spelled.startswith(b" ") else (0,):
        if text.startswith(spelled[prefix:], position) and _continues(text, position + len(spelled) - prefix, follows):
            lengths[np.flatnonzero(lengths)[:prefix]] -= 1
            ends = position + np.cumsum(lengths)
            return Spans(ends - lengths, ends)
    return _around_space(view, ids, text, position) if view.drops_space else None


def _continues(text: bytes, position: int, follows: _Literal | None) -> bool:
    return position == len(text) if follows is None else follows.is_at(text, position)


def _around_space(view: ByteView, ids: npt.NDArray[np.int32], text: bytes, position: int) -> Spans | None:
    starts = np.zeros(len(ids), dtype=np.int64)
    for index, spelling in enumerate(map(view.spelling.__getitem__, ids.tolist())):
        if not text.startswith(spelling, position):
            position = _past_space(text, position)
        if not text.startswith(spelling, position):
            return None
        starts[index], position = position, position + len(spelling)
    return Spans(starts, starts + view.lengths[ids])
