"""One side's tokens of an example, cut into stretches that byte-prefix sums can be computed of.

A stretch is a run of tokens of content, each of which spells exactly the bytes that it covers. Scaffold (special
tokens, chat templates) lies between two stretches: it has only one spelling, so the sums of the next stretch begin
anew, given all tokens before it. So they do after a first token that has no prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alm_pipeline.exactness.prefix_sums import NextTokens, PrefixSums, Stretch, prefix_sums
from alm_pipeline.exactness.sorted_vocabulary import SortedVocabulary
from storage.schemas import TokenKind

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SideExample:
    """The tokens of one side of an example, as they are stored."""

    ids: npt.NDArray[np.int32]
    """[T]"""
    ends: Ints
    """[T + 1] the byte of the text before each token, and after the last"""
    kinds: npt.NDArray[np.uint8]
    """[T] TokenKind"""

    def first(self, count: int) -> "SideExample":
        """Return its first tokens, at most `count`."""
        return SideExample(self.ids[:count], self.ends[: count + 1], self.kinds[:count])


@dataclass(frozen=True)
class Span:
    """A stretch of an example: T tokens, B bytes."""

    first: int
    """the number of tokens before it"""
    last: int
    """one past its last token"""
    start: int
    """its first byte"""
    end: int


def spans(example: SideExample, content: bytes, vocabulary: SortedVocabulary) -> list[Span]:
    """Return the stretches of an example whose text is `content`, in order."""
    exact = [
        kind == TokenKind.CONTENT and end > start and vocabulary.spellings[id_] == content[start:end]
        for id_, kind, start, end in zip(example.ids, example.kinds, example.ends[:-1], example.ends[1:], strict=True)
    ]
    if exact:
        exact[0] = False
    found, first = [], None
    for token, is_exact in enumerate([*exact, False]):
        if is_exact and first is None:
            first = token
        if not is_exact and first is not None:
            start, end = int(example.ends[first]), int(example.ends[token])
            found.append(Span(first, token, start, end))
            first = None
    return found


@dataclass(frozen=True)
class ExactSide:
    """What one side gives to an example's bytes: its canonical tokens' numbers, and its byte-prefix sums."""

    example: SideExample
    spans: Sequence[Span]
    sums: Sequence[PrefixSums]
    """one for each span"""
    cumulative: Floats
    """[T] A: log P of the tokens up to and including each one, given the first"""
    boundary: Floats
    """[T] P: log P(a boundary token next) after each token"""

    @classmethod
    def of(
        cls,
        example: SideExample,
        content: bytes,
        rows: npt.NDArray[np.float32],
        next_tokens: NextTokens,
        vocabulary: SortedVocabulary,
        boundary_ids: Ints,
        ends: Ints,
        tolerance: float,
        most: int,
    ) -> "ExactSide":
        """Compute it from log P of each next token after each token: `rows` [T, V].

        `ends` are the bytes at which a boundary's probability is needed; `most` is the number of sequences off the
        path.
        """
        found = spans(example, content, vocabulary)
        sums = []
        for span in found:
            stretch = Stretch(content[span.start : span.end], span.first, example.ids[span.first : span.last].tolist())
            needed = np.zeros(span.end - span.start + 1, np.bool_)
            needed[ends[(ends >= span.start) & (ends <= span.end)] - span.start] = True
            sums.append(
                prefix_sums(stretch, vocabulary, next_tokens, tolerance=tolerance, most=most, boundaries=needed)
            )
            most -= sums[-1].followed
        logprobs = rows[np.arange(len(rows) - 1), example.ids[1:]].astype(np.float64)
        boundary = np.log(np.exp(rows[:, boundary_ids].astype(np.float64)).sum(1))
        return cls(example, found, sums, np.concatenate([[0.0], np.cumsum(logprobs)]), boundary)
