"""What an engine's scores are compared with before a run, and again during it: a few texts, and how close is enough."""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import psutil

from alm_pipeline.config import ScoreConfig
from alm_pipeline.config.scoring import DTYPE_BYTES
from alm_pipeline.models.files import is_on_hub
from alm_pipeline.models.reference import ModelReference
from storage.errors import UserError

TEXTS = (
    "The quick brown fox jumps over the lazy dog. Natalia sold 48 clips in April, and half as many in May.",
    "def add(left, right):\n    return left + right  # 12345\n\nclass Shape:\n    sides: int = 4\n",
    "東京は日本の首都です。我们在北京学习机器学习。 🙂👩‍👩‍👧 Привет, мир! Änderung, naïve café.",
)
"""in several scripts"""
FACTORS = (0.25, 4.0)
"""of hidden states: a head with a wrong scale predicts these texts better with one of them"""
_BETTER = 1.0
"""by how many nats per token"""
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
"""mean differences, in nats"""
_LARGEST = 20
"""how many times the mean a single difference may be"""
_log = logging.getLogger("alm_pipeline")
Floats = npt.NDArray[np.float32]


class Scores(Protocol):
    """The scores of T tokens."""

    @property
    def logprobs(self) -> Floats:
        """[T]; NaN for the first token"""
        ...

    @property
    def boundary_logprobs(self) -> Floats:
        """[T] of a boundary token after each token"""
        ...


def check_close(
    found: Sequence[Scores],
    expected: Sequence[Scores],
    config: ScoreConfig,
    who: str,
    other: str,
    fix: str,
    level: int = logging.INFO,
) -> None:
    """Raise UserError if scores of the same tokens differ by more than the configuration's tolerance; log by how much.

    `who` computed those that were found, and `other` says what the expected ones are.
    """
    parts = [
        _difference(ours, theirs)
        for one, two in zip(found, expected, strict=True)
        for ours, theirs in ((one.logprobs[1:], two.logprobs[1:]), (one.boundary_logprobs, two.boundary_logprobs))
    ]
    differences = np.concatenate(parts)
    tolerance = config.served.tolerance or _TOLERANCE[config.dtype]
    mean, largest = float(differences.mean()), float(differences.max())
    _log.log(level, "probe of %s: differs from %s by %.2g nats, at most %.2g", who, other, mean, largest)
    if not (mean <= tolerance and largest <= _LARGEST * tolerance):
        raise UserError(
            f"{who}: its scores of a few texts differ from {other} by {mean:.3g} nats on average and {largest:.3g} at "
            f"most, and score.served.tolerance allows {tolerance:g} and {_LARGEST * tolerance:g}: {fix}"
        )


def _difference(ours: Floats, theirs: Floats) -> npt.NDArray[np.float64]:
    """Return absolute differences; two infinite numbers are equal, as where a vocabulary has no boundary token."""
    with np.errstate(invalid="ignore"):
        return np.where(ours == theirs, 0, np.abs(ours.astype(np.float64) - theirs))


def check_scale(found: Sequence[Scores], scaled: Sequence[Scores], factor: float, who: str) -> None:
    """Raise UserError if the texts are far likelier with hidden states that are multiplied by a factor.

    Then the states are not what the head expects: before the last norm, or for a scale that is not in the
    configuration.
    """
    gain = _mean_logprob(scaled) - _mean_logprob(found)
    if not gain <= _BETTER:
        raise UserError(
            f"{who}: with its hidden states multiplied by {factor:g} the probe's texts are likelier by {gain:.2g} nats "
            "per token, so they are not those that the teacher's head expects, or another model's: set "
            "score.served.hidden_states to false, and use the plugin alm-scores"
        )


def _mean_logprob(scores: Sequence[Scores]) -> float:
    return float(np.concatenate([row.logprobs[1:] for row in scores]).mean(dtype=np.float64))


def has_reference(teacher: ModelReference, config: ScoreConfig) -> bool:
    """Whether this project's own scorer can score here what the engine scores."""
    served = config.served
    if served.probe != "auto":
        return served.probe == "reference"
    is_quantized = served.quantization or getattr(teacher.load_config(), "quantization_config", None)
    if is_on_hub(teacher.name) or is_quantized:
        return False
    stored = sum(file.stat().st_size for file in teacher.weights())
    loaded = stored * DTYPE_BYTES[config.dtype] / DTYPE_BYTES.get(teacher.weights_dtype, 4)
    return bool(loaded < psutil.virtual_memory().available / 2)
