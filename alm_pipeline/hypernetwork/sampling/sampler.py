"""Draws a tokenizer for each training step: a Unigram model of substrings, as published (ZeTT, arXiv 2405.07883).

A pure function of the seed and the step: the way of splitting, the size and the noise are drawn; the substrings whose
noisy share of the text is largest are the tokens, and the shares their probabilities; the 256 bytes are always tokens.
The source's special tokens follow them, since every real tokenizer has some. Selecting and making a tokenizer of
32,768 tokens takes a twentieth of a second.

Shapes: C candidates, V tokens of the drawn tokenizer, T of them that have several pieces.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models

from alm_pipeline.hypernetwork.sampling.pretokenizers import splitter
from alm_pipeline.hypernetwork.sampling.settings import Pretokenizer, SamplerConfig
from alm_pipeline.hypernetwork.sampling.substrings import Substrings
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.transfer.fvt import PieceCutter
from alm_pipeline.vocabulary.byte_view import ByteView, byte_vocabulary

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_BYTES = 256
_NOISE_SPREAD = 4.0
"""the standard deviation of the logarithm of the noise, as published"""
_MOST_NOISE = 1e-3
"""of a share: more would draw substrings by chance alone"""
_IMPOSSIBLE = -1e5
"""the logarithm of a share that the noise has made negative, as published"""
_LETTERS = {byte: letter for letter, byte in byte_vocabulary().items()}
_DIGITS = 6
"""decimals of log-probabilities: the last bits of a logarithm differ between machines"""


@dataclass(frozen=True)
class Candidates:
    """The substrings that tokens are drawn from, of one way of splitting: first the 256 bytes, which are always drawn.

    Substrings that the source tokenizer cannot spell are left out.
    """

    spellings: tuple[bytes, ...]
    """[C]"""
    letters: tuple[str, ...]
    """[C] the same in GPT-2's alphabet"""
    shares: Floats
    """[C] of the text's bytes; 0 for a byte that does not occur"""
    piece_starts: Ints
    """[C + 1] where each one's source tokens begin"""
    pieces: Ints

    @classmethod
    def of(cls, substrings: Substrings, pieces: Mapping[bytes, Sequence[int]]) -> "Candidates":
        """Return the candidates; `pieces` are the source tokens that spell each substring, and each byte."""
        scores = dict(zip(substrings.spellings, substrings.scores.tolist(), strict=True))
        spellings = [bytes([byte]) for byte in range(_BYTES)]
        spellings += [spelling for spelling in substrings.spellings if len(spelling) > 1]
        cuts = [pieces[spelling] for spelling in spellings]
        kept = [k for k, cut in enumerate(cuts) if cut or k < _BYTES]
        total = sum(scores.values()) or 1
        return cls(
            tuple(spellings[k] for k in kept),
            tuple("".join(map(_LETTERS.__getitem__, spellings[k])) for k in kept),
            np.array([scores.get(spellings[k], 0) / total for k in kept]),
            np.concatenate([[0], np.cumsum([len(cuts[k]) for k in kept])]),
            np.array([id_ for k in kept for id_ in cuts[k]], np.int64),
        )


@dataclass(frozen=True)
class SampledTokenizer:
    """A drawn tokenizer: the 256 bytes, the drawn substrings, and the source's special tokens."""

    pretokenizer: Pretokenizer
    candidates: Candidates
    chosen: Ints
    """the tokens' candidates, without those of special tokens; the bytes first"""
    logprobs: Floats
    """of the tokens without the special ones"""
    specials: Ints
    """the source's special tokens"""
    special_spellings: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return len(self.chosen) + len(self.specials)

    @cached_property
    def spellings(self) -> tuple[bytes, ...]:
        """[V]"""
        ordinary = map(self.candidates.spellings.__getitem__, self.chosen.tolist())
        return (*ordinary, *self.special_spellings)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer without its special tokens, which no text has."""
        letters = map(self.candidates.letters.__getitem__, self.chosen.tolist())
        tokenizer = Tokenizer(models.Unigram(list(zip(letters, self.logprobs.tolist(), strict=True))))
        tokenizer.pre_tokenizer = splitter(self.pretokenizer)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """[V] of the spellings in bytes"""
        return np.array([len(spelling) for spelling in self.spellings], np.int32)

    @cached_property
    def view(self) -> ByteView:
        """The tokens' bytes."""
        special = np.arange(self.size) >= len(self.chosen)
        starts = [spelling[:1] in (b" ", b"\t", b"\n") for spelling in self.spellings]
        arrow = pa.array(self.spellings, pa.large_binary())
        fallback = np.zeros(self.size, np.bool_)
        starts_word = np.array(starts, np.bool_)
        return ByteView(self.spellings, self.lengths, special, starts_word, fallback, arrow, None, None, False, {})

    @cached_property
    def copies(self) -> Ints:
        """[V] the source token that a token is the same as; −1 if it has several pieces, −2 if it has none."""
        counts = self._piece_counts
        first = self.candidates.pieces[np.minimum(self._starts, len(self.candidates.pieces) - 1)]
        ordinary = np.select([counts == 1, counts > 1], [first, np.full_like(first, -1)], -2)
        return np.concatenate([ordinary, self.specials])

    @cached_property
    def new(self) -> Ints:
        """[T] the tokens that have several pieces"""
        return np.flatnonzero(self._piece_counts > 1)

    def pieces(self) -> tuple[Ints, Ints]:
        """Return the source tokens of the T tokens that have several: where each one's begin [T + 1], and all of them.

        That is what `Pieces` holds.
        """
        counts = self._piece_counts[self.new]
        starts = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        return starts, self.candidates.pieces[np.repeat(self._starts[self.new], counts) + within]

    @property
    def _starts(self) -> Ints:
        return self.candidates.piece_starts[self.chosen]

    @property
    def _piece_counts(self) -> Ints:
        return np.diff(self.candidates.piece_starts)[self.chosen]


class TokenizerSampler:
    """Draws tokenizers for a source tokenizer."""

    def __init__(
        self,
        substrings: Mapping[Pretokenizer, Substrings],
        source: LoadedTokenizer,
        rows: int,
        settings: SamplerConfig,
        seed: int,
    ) -> None:
        """`rows` are those of the source model's embedding; tokens without a row are used for nothing."""
        self.settings, self.seed = settings, seed
        pieces = _pieces(PieceCutter(source, rows), substrings)
        self.candidates = {name: Candidates.of(substrings[name], pieces) for name in settings.pretokenizers}
        specials = np.flatnonzero(source.view.special)
        self.specials = specials[specials < rows]
        self._special_spellings = tuple(source.view.spelling[id_] for id_ in self.specials.tolist())

    def sample(self, step: int) -> SampledTokenizer:
        """Return the tokenizer of a step."""
        settings = self.settings
        random = np.random.default_rng([self.seed, step])
        pretokenizer = settings.pretokenizers[int(random.integers(len(settings.pretokenizers)))]
        candidates = self.candidates[pretokenizer]
        smallest, largest = math.log(settings.min_tokens), math.log(settings.max_tokens)
        size = round(math.exp(smallest + (largest - smallest) * random.random()))
        noise = min(_MOST_NOISE, settings.noise * math.exp(_NOISE_SPREAD * random.standard_normal()))
        shares = candidates.shares + noise * random.standard_normal(len(candidates.shares))
        chosen = _largest(shares, size - _BYTES)
        return SampledTokenizer(
            pretokenizer,
            candidates,
            chosen,
            _logprobs(shares[chosen], candidates.shares),
            self.specials,
            self._special_spellings,
        )


def _pieces(cutter: PieceCutter, substrings: Mapping[Pretokenizer, Substrings]) -> dict[bytes, tuple[int, ...]]:
    """Return the source tokens that spell each substring of all ways of splitting, and each byte."""
    spellings = dict.fromkeys(bytes([byte]) for byte in range(_BYTES))
    for part in substrings.values():
        spellings |= dict.fromkeys(part.spellings)
    return dict(zip(spellings, cutter.cut_all(list(spellings)), strict=True))


def _largest(shares: Floats, count: int) -> Ints:
    """Return the 256 bytes, and the `count` other candidates with the largest shares, in their order.

    Of equal ones at the threshold, the first: a partition alone would take others on other machines.
    """
    others = shares[_BYTES:]
    count = min(max(0, count), len(others))
    if not count:
        return np.arange(_BYTES)
    threshold = np.partition(others, len(others) - count)[len(others) - count]
    above, equal = np.flatnonzero(others > threshold), np.flatnonzero(others == threshold)
    chosen = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    return np.concatenate([np.arange(_BYTES), _BYTES + chosen])


def _logprobs(shares: Floats, all_shares: Floats) -> Floats:
    """Return the log-probabilities of the tokens; a byte without one has the least of all substrings'."""
    least = math.log(all_shares[all_shares > 0].min(initial=1.0))
    logprobs: Floats = np.log(shares, out=np.full(len(shares), _IMPOSSIBLE), where=shares > 0)
    logprobs[:_BYTES] = np.where(shares[:_BYTES] > 0, logprobs[:_BYTES], least)
    return logprobs.round(_DIGITS)


def encode(sampled: SampledTokenizer, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Return the ids of each text, without special tokens."""
    rows = sampled.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(row.ids, np.int32) for row in rows]
