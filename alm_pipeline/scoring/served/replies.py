"""What an engine says of one row of tokens, and whether it can be true. Nothing that a server answers is trusted.

Shapes: T tokens of a row, K likeliest tokens. The plugin alm-scores puts log-probabilities into the place of logits,
with three numbers that are larger than all of them: 1 − log P(boundary), a code of what is served, and 2^-25.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from storage.errors import UserError

_UNIT = 2.0**-24
_COARSE_UNIT = 2.0**-15
_LEAST = _UNIT / 2
_DTYPES = ("other", "float32", "bfloat16", "float16")
QUANTIZATIONS = (
    *("unknown", "none", "other", "awq", "awq_marlin", "gptq", "gptq_marlin", "fp8", "fbgemm_fp8"),
    *("compressed-tensors", "bitsandbytes", "gguf", "modelopt", "modelopt_fp4", "mxfp4", "mxfp8", "torchao", "quark"),
    *("experts_int8", "inc"),
)
"""as in `alm_scores.encoding`, which a test compares"""
_CLAMPED = -9999.0
"""what vLLM writes for −∞, which JSON lacks"""
_ROUNDING = 1e-3
"""by how much float32 sums over a large vocabulary may exceed a limit, in nats"""

Floats = npt.NDArray[np.float32]
Values = Mapping[int, float]
"""the numbers of some ids at one position"""


class RowScores(NamedTuple):
    """The scores of a row of T tokens."""

    logprobs: Floats
    """[T]; NaN for the first token"""
    boundary_logprobs: Floats
    """[T] of a boundary token after each token"""
    top_ids: npt.NDArray[np.int32]
    """[T, K] likeliest first"""
    top_logprobs: Floats
    """[T, K]"""

    @classmethod
    def empty(cls, tokens: int, top_k: int) -> "RowScores":
        shape = (tokens, top_k)
        floats = np.full(tokens, np.nan, np.float32), np.empty(tokens, np.float32)
        return cls(*floats, np.empty(shape, np.int32), np.empty(shape, np.float32))


class Served(NamedTuple):
    """What the plugin says of the server that it runs in."""

    vocabulary: int
    """the first 16 bits of the hash of its file, of SGLang's 14"""
    dtype: str
    quantization: str


def decode_code(value: float) -> Served | None:
    """Return what a code says; None if the number is not one."""
    number = value / _UNIT - 1
    if not (0 <= number < 2**23 and number == int(number)):
        return None
    bits = int(number)
    method = bits & 31
    return Served(bits >> 7, _DTYPES[bits >> 5 & 3], QUANTIZATIONS[method] if method < len(QUANTIZATIONS) else "other")


def decode_coarse_code(value: float) -> Served | None:
    """Return what a code says after a log-softmax in float32; None if the number is not one."""
    number = round(value / _COARSE_UNIT) - 1
    is_code = 0 <= number < 2**14 and abs(value / _COARSE_UNIT - 1 - number) < 0.4
    return Served(number, "unknown", "unknown") if is_code else None


class WrongReply(UserError):
    """What a server answered can't be scores of this teacher."""


class Reader:
    """Reads the replies of servers for one vocabulary."""

    def __init__(self, vocabulary: ServedVocabulary, top_k: int, is_normalized: bool = False) -> None:
        """`is_normalized`: the engine takes the log-softmax of what the plugin has put there, as SGLang does."""
        self.vocabulary, self.top_k, self.is_normalized = vocabulary, top_k, is_normalized

    def read(self, ids: Sequence[int], after: Sequence[Values]) -> tuple[RowScores, Served]:
        """Return the scores of a row of T tokens from the numbers after each token, [T], and what the code says.

        The row's first log-probability is NaN. Raises WrongReply naming the token, without the server's address.
        """
        if len(after) != len(ids):
            raise WrongReply(f"answers for {len(after)} tokens, and was asked for {len(ids)}")
        carriers = np.array([self._carried(values, at, len(ids)) for at, values in enumerate(after)])
        logprobs = np.full(len(ids), np.nan)
        logprobs[1:] = [self._of_token(values, id_) for values, id_ in zip(after, ids[1:], strict=False)]
        served = self._served(carriers[-1])
        if self.is_normalized:
            # the log-softmax subtracted one number from all values of a position: the last carrier shows which
            sums_T = _LEAST - carriers[:, 2]
            carriers, logprobs[1:] = carriers + sums_T[:, None], logprobs[1:] + sums_T[:-1]
        scores = self._scores(logprobs, 1 - carriers[:, 0], after)
        self._check(ids, scores)
        return scores, served

    def _carried(self, values: Values, at: int, tokens: int) -> tuple[float, float, float]:
        """Return the carriers' numbers at a position; the last two are asked for at the end only, or by SGLang."""
        first, second, third = self.vocabulary.carriers
        is_last = at == tokens - 1
        if first not in values or ((is_last or self.is_normalized) and second not in values):
            raise WrongReply(
                f"has no P(boundary) after token {at}: the plugin alm-scores is not installed in the server's "
                "environment, or ALM_SCORES_FILE does not name a file there (alm serve MODEL --file FILE writes it)"
            )
        return values[first], values.get(second, math.nan), values.get(third, math.nan)

    def _of_token(self, values: Values, id_: int) -> float:
        if id_ not in values:
            raise WrongReply(f"does not have the log-probability of the text's own token {id_}: were other ids scored?")
        return values[id_]

    def _served(self, carriers: npt.NDArray[np.float64]) -> Served:
        """Return what the code of the last position says. Raises WrongReply if the vocabulary is another."""
        shift = _LEAST - carriers[2] if self.is_normalized else 0.0
        served = (decode_coarse_code if self.is_normalized else decode_code)(float(carriers[1] + shift))
        if served is None or carriers[0] + shift < 1 - _ROUNDING:
            raise WrongReply(
                "has numbers that the plugin alm-scores does not write: start vLLM with --logprobs-mode raw_logits, "
                "and install the plugin that comes with this version of alm-pipeline"
            )
        expected = int(self.vocabulary.hash[:4], 16) >> (2 if self.is_normalized else 0)
        if served.vocabulary != expected:
            raise WrongReply(
                f"serves another vocabulary or other boundary tokens than those of {self.vocabulary.model}: write the "
                "file again with `alm serve MODEL --file FILE`, and start the server with it"
            )
        return served

    def _scores(
        self, logprobs: npt.NDArray[np.float64], boundary: npt.NDArray[np.float64], after: Sequence[Values]
    ) -> RowScores:
        scores = RowScores.empty(len(logprobs), self.top_k)
        scores.logprobs[:], scores.boundary_logprobs[:] = logprobs, boundary
        if self.top_k:
            for at, values in enumerate(after):
                self._put_top(scores, at, values, boundary[at])
        return scores

    def _put_top(self, scores: RowScores, at: int, values: Values, boundary: float) -> None:
        carriers = self.vocabulary.carriers
        shift = _LEAST - values[carriers[2]] if self.is_normalized else 0.0
        tokens = sorted((-value, id_) for id_, value in values.items() if id_ not in carriers)[: self.top_k]
        if len(tokens) < self.top_k:
            raise WrongReply(f"has only {len(tokens)} of the {self.top_k} likeliest tokens after token {at}")
        scores.top_ids[at] = [id_ for _, id_ in tokens]
        scores.top_logprobs[at] = [shift - negative for negative, _ in tokens]

    def _check(self, ids: Sequence[int], scores: RowScores) -> None:
        """Raise WrongReply if these can't be log-probabilities, or contradict each other."""
        token, boundary = scores.logprobs[1:], scores.boundary_logprobs
        _require(np.isfinite(token) & (token > _CLAMPED), "the log-probability of token {} is NaN or infinite", 1)
        _require(np.isfinite(boundary), "P(boundary) after token {} is NaN or infinite")
        _require(np.asarray(token <= _ROUNDING), "the log-probability of token {} is above 0", 1)
        _require(np.asarray(boundary <= _ROUNDING), "P(boundary) after token {} is above 1")
        np.minimum(scores.logprobs, 0, out=scores.logprobs)
        np.minimum(boundary, 0, out=boundary)
        is_boundary = self.vocabulary.is_boundary[np.asarray(ids[1:], dtype=np.int64)]
        with np.errstate(divide="ignore"):
            most = np.where(is_boundary, boundary[:-1], np.log(-np.expm1(boundary[:-1].astype(np.float64))))
        # of a rest of e^-10 rounding may leave nothing
        fits = np.where(is_boundary, token <= most + _ROUNDING, np.exp(token) <= np.exp(most) + _ROUNDING)
        _require(fits, "token {} is likelier than all tokens of its kind, boundaries or others, together", 1)
        if self.top_k:
            right = (np.isfinite(scores.top_logprobs) & (scores.top_logprobs <= _ROUNDING)).all(-1)
            _require(np.asarray(right), "one of the likeliest tokens after token {} has no log-probability at most 0")
            np.minimum(scores.top_logprobs, 0, out=scores.top_logprobs)


def _require(right: npt.NDArray[np.bool_], problem: str, first: int = 0) -> None:
    """Raise WrongReply with the first token that is not right; `right` begins with the token `first`."""
    if not right.all():
        raise WrongReply(f"can't be true: {problem.format(first + int(np.argmin(right)))}")
