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

All logarithms are natural and in float64. Sums over neighbors add their probabilities, instead of subtracting two
cumulative sums, in which a sum of 1e-12 would have four digits.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.exactness.sorted_vocabulary import WHITE_SPACE, SortedVocabulary

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_LARGEST_EXPONENT = 700.0
"""a boundary may be impossible where a sequence ends"""


class TokenPath(NamedTuple):
    """A sequence of tokens: the first `kept` canonical tokens, and other tokens after them."""

    kept: int
    others: tuple[int, ...] = ()


NextTokens = Callable[[Sequence[TokenPath]], Iterable[npt.NDArray[np.floating]]]  # type: ignore[type-arg]
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
    boundaries: Bools | None = None,
) -> PrefixSums:
    """Return a stretch's byte-prefix sums, with at most `most` sequences off the canonical path.

    `boundaries` [L + 1] marks the places at which the probability of a boundary, too, must be known to `tolerance`.
    """
    assert stretch.context > 0, "the first token of a text has no prediction"
    sums = _Sums(stretch, vocabulary, boundaries)
    paths = [TokenPath(stretch.context + count) for count in range(len(stretch.ids) + 1)]
    sums.add_canonical(next_tokens(paths))
    followed = 0
    while followed < most and (branches := sums.take_heaviest(tolerance, most - followed)):
        for branch, row in zip(branches, next_tokens([branch.path for branch in branches]), strict=True):
            sums.add(branch, row)
        followed += len(branches)
    return sums.result(followed)


class _Branch(NamedTuple):
    """A sequence of tokens that spells content[:end]."""

    path: TokenPath
    end: int
    logprob: float
    next_canonical: int | None = None
    """the token after it that is a sequence of its own already"""


@dataclass
class _Sums:
    stretch: Stretch
    vocabulary: SortedVocabulary
    boundaries: Bools | None
    waiting: dict[int, list[_Branch]] = field(default_factory=dict)
    """sequences that are not followed yet, by the byte at which they end"""

    def __post_init__(self) -> None:
        size = len(self.stretch.content) + 1
        self.logprobs, self.boundary_logprobs = (np.full(size, -np.inf) for _ in range(2))
        self.logprobs[0] = 0

    def add_canonical(self, rows: Iterable[npt.NDArray[np.floating]]) -> None:  # type: ignore[type-arg]
        end, logprob = 0, 0.0
        for number, (row, token) in enumerate(zip(rows, [*self.stretch.ids, None], strict=True)):
            self.add(_Branch(TokenPath(self.stretch.context + number), end, logprob, token), row)
            if token is not None:
                end, logprob = end + len(self.vocabulary.spellings[token]), logprob + float(row[token])
        assert end == len(self.stretch.content), "the canonical tokens do not spell the stretch"

    def add(self, branch: _Branch, row: npt.NDArray[np.floating]) -> None:  # type: ignore[type-arg]
        """Add what comes after a sequence: whole tokens wait for their turn, the others end in the sums."""
        probabilities = np.exp(row.astype(np.float64))
        ordered = np.append(probabilities[self.vocabulary.order], 0)
        starts, ranges = [], []
        for start in self._starts(branch.end):
            if (found := self.vocabulary.find(start)).start < found.end:
                starts.append(branch.end + len(start))
                ranges.append(found)
        self._add(self.logprobs, branch, starts, _sums(ordered, [(found.start, found.end) for found in ranges]))
        self._wait(branch, row, zip(starts, ranges, strict=True))
        self._add_boundaries(branch, ordered, [branch.end, *starts], probabilities[self.vocabulary.special].sum())

    def _starts(self, end: int) -> Iterator[bytes]:
        """Yield content[end:p] as long as there are tokens that begin so."""
        content = self.stretch.content
        for place in range(end + 1, len(content) + 1):
            start = content[end:place]
            found = self.vocabulary.find(start)
            if found.start == found.end:
                return
            yield start

    def _add(self, totals: Floats, branch: _Branch, places: Sequence[int], sums: Floats) -> None:
        with np.errstate(divide="ignore"):
            totals[places] = np.logaddexp(totals[places], branch.logprob + np.log(sums))

    def _wait(
        self,
        branch: _Branch,
        row: npt.NDArray[np.floating],  # type: ignore[type-arg]
        found: Iterable[tuple[int, "tuple[int, int, int]"]],
    ) -> None:
        for place, (first, equal_end, _) in found:
            for token in self.vocabulary.ids(range(first, equal_end)):
                logprob = branch.logprob + float(row[token])
                if token != branch.next_canonical and logprob > -math.inf:
                    path = TokenPath(branch.path.kept, (*branch.path.others, token))
                    self.waiting.setdefault(place, []).append(_Branch(path, place, logprob))

    def _add_boundaries(self, branch: _Branch, ordered: Floats, places: Sequence[int], special: float) -> None:
        content = self.stretch.content
        found = [
            [self.vocabulary.find(content[branch.end : place] + space) for space in WHITE_SPACE] for place in places
        ]
        ranges = [(each.start, each.end) for spaces in found for each in spaces]
        sums = _sums(ordered, ranges).reshape(len(places), len(WHITE_SPACE)).sum(1)
        sums[0] += special
        self._add(self.boundary_logprobs, branch, places, sums)

    def take_heaviest(self, tolerance: float, most: int) -> list[_Branch]:
        """Remove and return sequences to follow: of each place the heaviest, as few as leave at most `tolerance`."""
        chosen: list[tuple[float, int, _Branch]] = []
        for place, branches in self.waiting.items():
            total = self._total(place)
            shares = sorted(((_share(branch.logprob, total), branch) for branch in branches), reverse=True)
            rest = sum(share for share, _ in shares)
            for share, branch in shares:
                if rest <= tolerance:
                    break
                chosen.append((share, place, branch))
                rest -= share
        chosen = sorted(chosen, reverse=True)[:most]
        for _, place, branch in chosen:
            self.waiting[place].remove(branch)
        return [branch for _, _, branch in chosen]

    def _total(self, place: int) -> float:
        """Return the logarithm of what the sequences that are left out at a place are measured by."""
        is_measured = self.boundaries is not None and self.boundaries[place]
        return float((self.boundary_logprobs if is_measured else self.logprobs)[place])

    def result(self, followed: int) -> PrefixSums:
        waiting = np.full(len(self.logprobs), -np.inf)
        for place, branches in self.waiting.items():
            waiting[place] = np.logaddexp.reduce([branch.logprob for branch in branches] or [-np.inf])
        with np.errstate(over="ignore", invalid="ignore"):
            shares = [np.exp(waiting - totals) for totals in (self.logprobs, self.boundary_logprobs)]
        left_out, boundary_left_out = (np.where(waiting == -np.inf, 0, share) for share in shares)
        return PrefixSums(self.logprobs, self.boundary_logprobs, left_out, boundary_left_out, followed)


def _share(logprob: float, total: float) -> float:
    return math.exp(min(logprob - total, _LARGEST_EXPONENT))


def _sums(ordered: Floats, ranges: Sequence[tuple[int, int]]) -> Floats:
    """Return the sum over each range of places; `ordered` has a 0 at its end."""
    if not ranges:
        return np.zeros(0)
    edges = np.array(ranges, np.int64)
    sums: Floats = np.add.reduceat(ordered, edges.ravel())[::2]
    return np.where(edges[:, 0] < edges[:, 1], sums, 0)
