"""Byte-prefix sums: the probability that a text begins with given bytes, whatever tokens spell them.

A text's canonical tokens are one of many token sequences that spell its bytes, and a language model gives all of them
some probability. The text begins with b[:p] if a sequence of tokens spells less than p bytes of it, and a next token
reaches or passes byte p without differing from the text:

    P(b[:p]) = Σ_s P(s) · Σ_{v: bytes(v) begins with b[e(s):p]} P(v | s)

over all sequences s of tokens that spell b[:e(s)] with e(s) < p (the cover of Vieira et al., ICML 2025). The inner sum
is over neighbors in a vocabulary that is sorted by bytes. The canonical sequences, "one step off the canonical path",
come from a single forward pass. A sequence off the path that ends at byte e is missing from the sums of all later
bytes. So the heaviest of them are followed in turn, until those that are not followed have together at most `tolerance`
of the probability of b[:e]. That is also by how much the sum over the 256 next bytes (and the special tokens) then
falls short of P(b[:e]).

A *boundary* after b[:p] is a byte of white space (space, tab, line feed) or a special token. It is an event of the
text: a token that begins before p and has white space at p counts as well, so its probability is the same for every
tokenizer of the same distribution over texts.

A sequence that has left the path and has come back to it for `rejoined` tokens is predicted from like the canonical one
that ends with the same tokens at the same byte, without a forward pass of its own. This loses no probability, and is
off by the share of such sequences times the difference that tokens further back make. Without it (None), each of them
would have to be followed to the end of the text.

All logarithms are natural and in float64. Sums over neighbors add their probabilities, instead of subtracting two
cumulative sums, in which a sum of 1e-12 would have four digits.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.exactness.sorted_vocabulary import WHITE_SPACE, SortedVocabulary, TokenRange

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_LARGEST_EXPONENT = 700.0
"""a boundary may be impossible where a sequence ends"""


class TokenPath(NamedTuple):
    """A sequence of tokens: the first `kept` canonical tokens, and other tokens after them."""

    kept: int
    others: tuple[int, ...] = ()


NextTokens = Callable[[Sequence[TokenPath]], Iterable[npt.NDArray[np.floating]]]
"""Returns, for each path, log P of every token after it [V]."""


class Stretch(NamedTuple):
    """Bytes of a text that canonical tokens spell one after the other, and what is before them."""

    content: bytes
    context: int
    """the number of canonical tokens before the stretch; at least 1"""
    ids: Sequence[int]
    """the canonical tokens of the stretch"""


@dataclass(frozen=True)
class PrefixSums:
    """The sums of a stretch of L bytes, given the tokens before it."""

    logprobs: Floats
    """[L + 1] log P(the text goes on with content[:p])"""
    boundary_logprobs: Floats
    """[L + 1] log P(… and then a boundary)"""
    left_out: Floats
    """[L + 1] the sequences that end at p and were not followed, as a share of P(content[:p])"""
    boundary_left_out: Floats
    """[L + 1] the same as a share of P(content[:p] and then a boundary): an upper limit"""
    followed: int
    """the number of sequences off the canonical path that were followed"""


def prefix_sums(
    stretch: Stretch,
    vocabulary: SortedVocabulary,
    next_tokens: NextTokens,
    *,
    tolerance: float = 1e-3,
    most: int = 1000,
    rejoined: int | None = 2,
    boundaries: Bools | None = None,
) -> PrefixSums:
    """Return a stretch's byte-prefix sums, with at most `most` sequences off the canonical path.

    `boundaries` [L + 1] marks the places at which the probability of a boundary, too, must be known to `tolerance`.
    """
    assert stretch.context > 0, "the first token of a text has no prediction"
    sums = _Sums(stretch, vocabulary, boundaries, rejoined)
    sums.add_canonical(next_tokens(sums.canonical))
    followed = 0
    while followed < most and (branches := sums.take_heaviest(tolerance, most - followed)):
        for branch, row in zip(branches, next_tokens([branch.path for branch in branches]), strict=True):
            sums.add(branch, sums.step(branch.end, row))
        followed += len(branches)
    return sums.result(followed)


class _Branch(NamedTuple):
    """A sequence of tokens that spells content[:end]."""

    path: TokenPath
    end: int
    logprob: float
    rejoined: int = 0
    """the number of its last tokens that are canonical, after it had left the path"""


class _Step(NamedTuple):
    """What comes after a sequence that ends at a byte, given the sequence."""

    places: list[int]
    logprobs: Floats
    """[places] of the tokens that reach each place"""
    boundary_places: list[int]
    boundary_logprobs: Floats
    whole: list[tuple[int, int, float]]
    """tokens that end within the stretch: where, which, and their log-probability"""


class _Sums:
    """The sums so far, and the sequences that are not in them yet."""

    def __init__(
        self, stretch: Stretch, vocabulary: SortedVocabulary, boundaries: Bools | None, rejoined: int | None
    ) -> None:
        self.stretch, self.vocabulary, self.boundaries, self.rejoined = stretch, vocabulary, boundaries, rejoined
        size = len(stretch.content) + 1
        self.logprobs, self.boundary_logprobs = (np.full(size, -np.inf) for _ in range(2))
        self.logprobs[0] = 0
        self.canonical = [TokenPath(stretch.context + count) for count in range(len(stretch.ids) + 1)]
        ends = np.cumsum([0, *(len(vocabulary.spellings[token]) for token in stretch.ids)]).tolist()
        assert ends[-1] == len(stretch.content), "the canonical tokens do not spell the stretch"
        self._ends = ends
        self._canonical_at = {
            end: (start, token, path)
            for start, end, token, path in zip(ends, ends[1:], stretch.ids, self.canonical[1:], strict=False)
        }
        self._steps: dict[TokenPath, _Step] = {}
        self._waiting: dict[int, dict[TokenPath, _Branch]] = {}

    def add_canonical(self, rows: Iterable[npt.NDArray[np.floating]]) -> None:
        logprob = 0.0
        for path, end, row, token in zip(self.canonical, self._ends, rows, [*self.stretch.ids, None], strict=True):
            self._steps[path] = self.step(end, row)
            self.add(_Branch(path, end, logprob), self._steps[path], token)
            logprob += 0 if token is None else float(row[token])

    def step(self, end: int, row: npt.NDArray[np.floating]) -> _Step:
        """Return what comes after a sequence that ends at this byte; `row` is log P of every next token."""
        probabilities = np.exp(row.astype(np.float64))
        ordered = np.append(probabilities[self.vocabulary.order], 0)
        starts = list(self._starts(end))
        places = [end + len(start) for start in starts]
        ranges = [self.vocabulary.find(start) for start in starts]
        spaced = [self.vocabulary.find(start + space) for start in [b"", *starts] for space in WHITE_SPACE]
        boundary = _sums(ordered, spaced).reshape(-1, len(WHITE_SPACE)).sum(1)
        boundary[0] += probabilities[self.vocabulary.special].sum()
        whole = [
            (place, token, float(row[token]))
            for place, found in zip(places, ranges, strict=True)
            for token in self.vocabulary.ids(range(found.start, found.equal_end))
            if row[token] > -np.inf
        ]
        with np.errstate(divide="ignore"):
            return _Step(places, np.log(_sums(ordered, ranges)), [end, *places], np.log(boundary), whole)

    def _starts(self, end: int) -> Iterator[bytes]:
        """Yield content[end:p] as long as there are tokens that begin so."""
        content = self.stretch.content
        for place in range(end + 1, len(content) + 1):
            start = content[end:place]
            found = self.vocabulary.find(start)
            if found.start == found.end:
                return
            yield start

    def add(self, branch: _Branch, step: _Step, next_canonical: int | None = None) -> None:
        """Add what comes after a sequence; whole tokens make sequences that wait, but for the next canonical one."""
        for totals, places, logprobs in (
            (self.logprobs, step.places, step.logprobs),
            (self.boundary_logprobs, step.boundary_places, step.boundary_logprobs),
        ):
            totals[places] = np.logaddexp(totals[places], branch.logprob + logprobs)
        for place, token, logprob in step.whole:
            if token != next_canonical:
                self._wait(self._child(branch, token, place, branch.logprob + logprob))

    def _child(self, branch: _Branch, token: int, place: int, logprob: float) -> _Branch:
        start, canonical, path = self._canonical_at.get(place, (-1, -1, branch.path))
        rejoined = branch.rejoined + 1 if (start, canonical) == (branch.end, token) else 0
        if self.rejoined is not None and rejoined >= self.rejoined:
            return _Branch(path, place, logprob, rejoined)
        return _Branch(TokenPath(branch.path.kept, (*branch.path.others, token)), place, logprob, rejoined)

    def _wait(self, branch: _Branch) -> None:
        waiting = self._waiting.setdefault(branch.end, {})
        if other := waiting.get(branch.path):
            logprob = float(np.logaddexp(branch.logprob, other.logprob))
            branch = branch._replace(logprob=logprob, rejoined=min(branch.rejoined, other.rejoined))
        waiting[branch.path] = branch

    def take_heaviest(self, tolerance: float, most: int) -> list[_Branch]:
        """Remove and return sequences to follow: of each place the heaviest, as few as leave at most `tolerance`.

        Those that have rejoined the canonical path are followed at once.
        """
        chosen: list[tuple[float, _Branch]] = []
        for place in range(len(self.logprobs)):
            while rejoined := [branch for branch in self._heaviest(place, tolerance / 10) if not branch[1].path.others]:
                for _, branch in rejoined:
                    self.add(self._waiting[place].pop(branch.path), self._steps[branch.path])
            chosen += self._heaviest(place, tolerance)
        chosen = sorted(chosen, key=lambda item: -item[0])[:most]
        return [self._waiting[branch.end].pop(branch.path) for _, branch in chosen]

    def _heaviest(self, place: int, tolerance: float) -> list[tuple[float, _Branch]]:
        """Return the heaviest sequences that end at a place, with their shares; the others are within the tolerance."""
        if not (waiting := self._waiting.get(place)):
            return []
        is_measured = self.boundaries is not None and self.boundaries[place]
        total = float((self.boundary_logprobs if is_measured else self.logprobs)[place])
        shares = [(_share(branch.logprob, total), branch) for branch in waiting.values()]
        shares.sort(key=lambda item: item[0])
        within = np.cumsum([share for share, _ in shares]) <= tolerance
        return shares[int(within.sum()) :]

    def result(self, followed: int) -> PrefixSums:
        waiting = np.full(len(self.logprobs), -np.inf)
        for place, branches in self._waiting.items():
            waiting[place] = np.logaddexp.reduce([branch.logprob for branch in branches.values()] or [-np.inf])
        with np.errstate(over="ignore", invalid="ignore"):
            shares = [np.exp(waiting - totals) for totals in (self.logprobs, self.boundary_logprobs)]
        left_out, boundary_left_out = (np.where(waiting == -np.inf, 0, share) for share in shares)
        return PrefixSums(self.logprobs, self.boundary_logprobs, left_out, boundary_left_out, followed)


def _share(logprob: float, total: float) -> float:
    return math.exp(min(logprob - total, _LARGEST_EXPONENT))


def _sums(ordered: Floats, ranges: Sequence[TokenRange]) -> Floats:
    """Return the sum over each range of places; `ordered` has a 0 at its end."""
    if not ranges:
        return np.zeros(0)
    edges = np.array([(found.start, found.end) for found in ranges], np.int64)
    sums: Floats = np.add.reduceat(ordered, edges.ravel())[::2]
    return np.where(edges[:, 0] < edges[:, 1], sums, 0)
