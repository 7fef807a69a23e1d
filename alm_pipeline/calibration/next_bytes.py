"""The next byte of texts: how sure models are of it, and how often they are right; the same for every tokenizer.

At a place of a text, the bytes before it are tokenized alone, and the model gives each next byte b the probability

    P(b) ∝ Σ_k P(tokens up to k) · Σ_{v: bytes(v) begin with rest(k) + b} P(v | tokens up to k)

over the canonical tokens, k of them, and the bytes before the place that they do not spell, rest(k): a token may begin
before the place and go on after it. Together with the special tokens, which end the text, that is a distribution over
257 outcomes. Spellings of the bytes before the place that leave the canonical tokens are left out (`alm audit` measures
them: a few thousandths). For a model of bytes, nothing is.

Places are beginnings of characters, drawn at random, and those of one text are a cluster.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from alm_pipeline.calibration.report.measures import ScoredChoices
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.formats.layouts import resolve_layout
from alm_pipeline.corpus.sources import open_source
from alm_pipeline.exactness.branches import BranchModel
from alm_pipeline.exactness.sorted_vocabulary import SortedVocabulary
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.tokenizer import LoadedTokenizer, common_forms
from alm_pipeline.recipes.overrides import corpus_at
from alm_pipeline.runtime.progress import track
from storage.errors import UserError

END, OUTCOMES = 256, 257
"""the end of the text, after the bytes; and how many outcomes there are"""
_MOST_BYTES = 1024
"""of a text that are read"""
_LEAST = 1e-300
"""a probability that is taken for 0"""
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Places:
    """Places of texts, and the byte that is at each."""

    befores: Sequence[str]
    """the text before each place, at least one character"""
    bytes: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.int64]
    """the number of each place's text"""


def draw_places(
    url: str, text: str, examples: int, per_text: int, tokenizers: Sequence[LoadedTokenizer], seed: int = 0
) -> Places:
    """Draw places from the first texts of files: at most `per_text` of each, among its first bytes.

    `text` is a column or a template of columns. Texts are in a form that none of the tokenizers changes. Raises
    UserError if no text has two characters.
    """
    corpus = corpus_at(url, {"layout": "text", "text": text, "max_examples": examples})
    forms = common_forms(tokenizers)
    corpus = resolve_layout(corpus, open_source(corpus.source)).model_copy(
        update={"normalize": forms, "max_bytes": _MOST_BYTES}
    )
    texts = [example.text for example in iter_examples(corpus, Counter()) if example.text]
    generator = np.random.default_rng(seed)
    drawn = [
        (number, place, each)
        for number, each in enumerate(texts)
        for place in sorted(generator.permutation(np.arange(1, len(each)))[:per_text].tolist())
    ]
    if not drawn:
        raise UserError(f"{url}: contains no text of two characters or more")
    return Places(
        [each[:place] for _, place, each in drawn],
        np.array([each[place].encode()[0] for _, place, each in drawn], np.int64),
        np.array([number for number, _, _ in drawn], np.int64),
    )


def next_byte_scores(model: PreTrainedModel, tokenizer: LoadedTokenizer, places: Places) -> tuple[Floats, Flags]:
    """Return (log P of the outcomes at every place [P, 257], whether the place could be read [P]).

    A place can't be read if tokens spell other bytes than the text before it, or are more than the model reads. Raises
    UserError if the tokenizer's tokens do not cover every byte.
    """
    predicted = NextBytes(model, tokenizer)
    logprobs, readable = np.zeros((len(places.befores), OUTCOMES)), np.zeros(len(places.befores), bool)
    with track(f"next bytes {tokenizer.label}", len(places.befores), "places") as advance:
        for number, before in enumerate(places.befores):
            if (found := predicted.after(before)) is not None:
                logprobs[number], readable[number] = np.log(np.maximum(found, _LEAST)), True
            advance(1)
    return logprobs, readable


def as_choices(logprobs: Floats, answers: npt.NDArray[np.int64]) -> ScoredChoices:
    """Return the outcomes as choices, each of one token and byte, so that all readings are the same."""
    ones = np.ones(logprobs.shape, np.int64)
    return ScoredChoices(logprobs, ones, ones, answers)


class NextBytes:
    """The next byte after a text, by one model."""

    def __init__(self, model: PreTrainedModel, tokenizer: LoadedTokenizer) -> None:
        """Raises UserError if the tokenizer is not the model's, or its tokens do not cover every byte."""
        self._model, self._tokenizer = BranchModel(model, tokenizer), tokenizer
        self._vocabulary = SortedVocabulary.of(tokenizer.view, self._model.vocabulary)
        self._limit = context_length(model.config)

    def after(self, text: str) -> Floats | None:
        """[257] the probability of each next byte, and of the end of the text, which add up to 1.

        None if tokens spell other bytes than the text, or are more than the model reads.
        """
        before = self._tokenizer.frame[0]
        ids = self._tokenizer.encoding_backend.encode(text, add_special_tokens=False).ids
        spelled = [self._vocabulary.spellings[id_] for id_ in ids]
        content = b"".join(spelled)
        if content.lstrip(b" ") != text.encode().lstrip(b" ") or len(before) + len(ids) > (self._limit or np.inf):
            return None
        # row k is after k tokens of the text; without a token before it, the first one has no prediction and is given
        first = 0 if before else 1
        rows = self._model.after([*before, *ids]).canonical_rows[max(0, len(before) - 1) :].astype(np.float64)
        ends = np.cumsum([0, *map(len, spelled)])
        steps = [self._step(row, content[ends[first + k] :]) for k, row in enumerate(rows)]
        passed = np.cumsum([0.0, *(row[id_] for row, id_ in zip(rows, ids[first:], strict=False))])
        weights = np.exp(passed - passed.max())
        found: Floats = sum(
            (weight * step for weight, step in zip(weights, steps, strict=True) if step is not None), np.zeros(OUTCOMES)
        )
        probabilities: Floats = found / found.sum()
        return probabilities

    def _step(self, row: Floats, rest: bytes) -> Floats | None:
        """[257] the probability that the next token begins with the rest and goes on with each byte; None if none can.

        At the end of the text before the place, also that no byte follows.
        """
        if rest and self._vocabulary.find(rest).start == self._vocabulary.find(rest).end:
            return None
        probabilities = np.exp(row)
        summed = np.concatenate([[0.0], probabilities[self._vocabulary.order].cumsum()])
        ranges = [self._vocabulary.find(rest + bytes([byte])) for byte in range(END)]
        of_bytes = [summed[places.end] - summed[places.start] for places in ranges]
        return np.array([*of_bytes, 0.0 if rest else probabilities[self._vocabulary.special].sum()])
