"""The next byte of texts: how sure models are of it, and how often they are right; the same for every tokenizer.

At a place of a text, the bytes before it are tokenized alone, and the model gives each next byte b the probability

    P(b) ∝ Σ_k P(tokens up to k) · Σ_{v: bytes(v) begin with rest(k) + b} P(v | tokens up to k)

over the canonical tokens, k of them, and the bytes before the place that they do not spell, rest(k): a token may begin
before the place and go on after it. Together with the special tokens, which end the text, that is a distribution over
257 outcomes. Spellings of the bytes before the place that leave the canonical tokens are left out (`alm audit` measures
them: a few thousandths). For a model of bytes, nothing is.
"""

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from alm_pipeline.calibration.report.measures import ScoredChoices
from alm_pipeline.exactness.branches import BranchModel
from alm_pipeline.exactness.sorted_vocabulary import SortedVocabulary
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import Dropped

END, OUTCOMES = 256, 257
"""the end of the text, after the bytes; and how many outcomes there are"""
Floats = npt.NDArray[np.float64]


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

    def after(self, text: str) -> Floats | Dropped:
        """[257] the probability of each next byte, and of the end of the text, which add up to 1.

        Or why the model can't read the text: tokens spell other bytes, or are more than it reads.
        """
        before = self._tokenizer.frame[0]
        ids = self._tokenizer.encoding_backend.encode(text, add_special_tokens=False).ids
        spelled = [self._vocabulary.spellings[id_] for id_ in ids]
        content = b"".join(spelled)
        if content.lstrip(b" ") != text.encode().lstrip(b" "):
            return Dropped.NOT_ROUND_TRIP
        if len(before) + len(ids) > (self._limit or np.inf):
            return Dropped.OVER_CONTEXT
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
