"""A distribution of texts whose token models are exact: words, drawn independently, under any byte-level BPE.

A word begins with white space, and that is the only place of it where a pre-tokenizer may see what came before. So the
tokens of a text are those of its words, one after the other, and the probability of each token follows from the
probabilities of the words that begin with the same tokens.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from tests import tiny

Floats = npt.NDArray[np.float64]
Tokens = tuple[int, ...]
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "st", "tr", "ч", "é")
_VOWELS = ("a", "e", "i", "o", "u", "ä")
_SUFFIXES = ("", "", "s", "er", "ing", "ed", "able")
_SPACES = ("\n", "  ", "\n\n    ", "\t")
SPACE_PIECES = ("Ġ", "Ċ", "ĉ")
"""how byte-level BPE writes a space, the end of a line and a tab"""


class Words(NamedTuple):
    """Words with the white space before them, and their probabilities."""

    spellings: tuple[str, ...]
    probabilities: Floats

    def draw(self, count: int, random: np.random.Generator) -> list[int]:
        """Return the indices of words drawn independently."""
        return random.choice(len(self.spellings), count, p=self.probabilities).tolist()

    def text(self, indices: Sequence[int]) -> str:
        return "".join(self.spellings[index] for index in indices)


def drawn_words(count: int, seed: int = 0, runs: float = 0.0) -> Words:
    """Return words of syllables and suffixes, many the beginning of others, with probabilities as in Zipf's law.

    `runs` is the share of words that come after a run of white space, and not after a space alone.
    """
    random = np.random.default_rng(seed)
    found = dict[str, None]()
    while len(found) < count:
        syllables = (str(random.choice(_ONSETS)) + str(random.choice(_VOWELS)) for _ in range(random.integers(1, 4)))
        space = str(random.choice(_SPACES)) if random.random() < runs else ""
        # the run's last space is the word's own
        found[f"{space} {''.join(syllables)}{random.choice(_SUFFIXES)}"] = None
    weights = 1 / np.arange(2, count + 2)
    return Words(tuple(found), weights / weights.sum())


def trained_tokenizer(words: Words, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the words, each as often as it is likely."""
    repeats = np.ceil(words.probabilities * 20 * len(words.spellings)).astype(int).clip(max=50)
    texts = [text for text, times in zip(words.spellings, repeats.tolist(), strict=True) for _ in range(times)]
    return tiny.byte_level_tokenizer(vocab_size, texts)


class Numbers(NamedTuple):
    """The two numbers of each token of a text, exact."""

    ids: npt.NDArray[np.int32]
    """[tokens]"""
    byte_ends: npt.NDArray[np.int64]
    """[tokens]"""
    logprobs: Floats
    """[tokens]"""
    boundary_logprobs: Floats
    """[tokens] of a token that begins with white space after each; −∞ where none can come"""

    @property
    def cumulative(self) -> Floats:
        """[tokens] the log-probability of the text up to the end of each token (A)."""
        return np.cumsum(self.logprobs)

    @property
    def with_boundary(self) -> Floats:
        """[tokens] the same, and that a boundary follows (D)."""
        return self.cumulative + self.boundary_logprobs


class TokenModel:
    """The exact distribution of the tokens of texts of these words."""

    def __init__(self, words: Words, tokenizer: PreTrainedTokenizerFast) -> None:
        self.words, self.tokenizer = words, tokenizer
        self.tokens: list[Tokens] = [
            tuple(tokenizer(spelling, add_special_tokens=False)["input_ids"]) for spelling in words.spellings
        ]
        # of the words that begin with these tokens, and of the word that is these tokens
        self._beginning, self._whole = defaultdict[Tokens, float](float), defaultdict[Tokens, float](float)
        for tokens, probability in zip(self.tokens, words.probabilities.tolist(), strict=True):
            self._whole[tokens] += probability
            for length in range(len(tokens) + 1):
                self._beginning[tokens[:length]] += probability
        pieces: Any = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self._lengths = [len(piece) for piece in pieces]  # byte-level: a character is a byte
        self._is_space = [piece.startswith(SPACE_PIECES) for piece in pieces]
        self._followers = defaultdict[Tokens, set[int]](set)
        for tokens in self.tokens:
            for length in range(len(tokens)):
                self._followers[tokens[:length]].add(tokens[length])

    def boundary(self, tokens: Tokens) -> float:
        """Return the probability that a token which begins with white space follows, within the word or after it."""
        inside = sum(self._beginning[(*tokens, id_)] for id_ in self._followers[tokens] if self._is_space[id_])
        return (self._whole[tokens] + inside) / self._beginning[tokens]

    def probability(self, tokens: Tokens, following: int) -> float:
        """Return the probability of a token, or with −1 of the word's end, after these tokens of a word."""
        mass = self._whole[tokens] if following < 0 else self._beginning[(*tokens, following)]
        return mass / self._beginning[tokens]

    def ids(self, indices: Sequence[int]) -> list[int]:
        """Return the tokens of a text of these words."""
        return [id_ for index in indices for id_ in self.tokens[index]]

    def walk(self, ids: Iterable[int]) -> list[Tokens]:
        """[tokens] the tokens of the word up to and with each token; a word begins where nothing else can."""
        states, state = list[Tokens](), Tokens()
        for id_ in ids:
            state = (*state, id_) if (*state, id_) in self._beginning else (id_,)
            assert state in self._beginning, "the text is not of these words"
            states.append(state)
        return states

    def numbers(self, ids: Iterable[int]) -> Numbers:
        """Return the numbers of a text; the first word's are those of any first word."""
        states = self.walk(ids)
        last = [state[-1] for state in states]
        before = [Tokens(), *states]
        logprobs = [self._logprob(*pair) for pair in zip(before, states, strict=False)]
        boundaries = [self._boundary_logprob(state) for state in states]
        ends = np.cumsum([self._lengths[id_] for id_ in last], dtype=np.int64)
        return Numbers(np.array(last, np.int32), ends, np.array(logprobs), np.array(boundaries))

    def _logprob(self, before: Tokens, state: Tokens) -> float:
        """Return the log-probability of a state's last token after another state, which a new word has to end first."""
        ends = self._whole[before] / self._beginning[before] if before and len(state) == 1 else 1.0
        return math.log(ends * self._beginning[state] / self._beginning[state[:-1]])

    def _boundary_logprob(self, state: Tokens) -> float:
        boundary = self.boundary(state)
        return math.log(boundary) if boundary else -math.inf
