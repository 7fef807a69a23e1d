"""The settings of a calibration that the command line and the flows share; nothing here is slow to import."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.merging.rule import MergeMethod
from storage.errors import UserError

Reading = Literal["sum", "token", "bytes"]
"""What a choice's log-probability is divided by: nothing, its number of tokens, or its number of bytes."""
READINGS: tuple[Reading, ...] = get_args(Reading)
SweepMethod = Literal[MergeMethod, "ensemble"]
"""How a point between two models is made: a merge of their weights, or both as an ensemble, whose weights are λ."""
BINS = 10
"""of ECE, ACE and reliability tables, unless another number is asked for"""
RESAMPLES = 1000
_MOST_POINTS = 201


@dataclass(frozen=True)
class QuestionColumns:
    """The columns of files that hold questions."""

    prompt: str = "prompt"
    choices: str = "choices"
    """a list of texts, or in CSV its JSON"""
    answer: str = "answer"
    """the index of the right choice from 0, or its text"""
    cluster: str = "cluster"
    """optional: each question is a cluster of its own without it"""
    id: str = "id"
    """optional: the file's name and the row's number without it"""
    delimiter: str = " "
    """what stands between the prompt and a choice, as lm_eval's target_delimiter"""


@dataclass(frozen=True)
class ReportSettings:
    """How a report is made of scores; none of it scores anything again."""

    bins: int = BINS
    resamples: int = RESAMPLES
    seed: int = 0
    """of the halves and of the resamples"""


@dataclass(frozen=True)
class Sweep:
    """The points between a base model and its tuned child."""

    weights: tuple[float, ...]
    method: SweepMethod = "linear"
    density: float = 1.0
    seed: int = 0
    """of the masks of `dare`"""

    @classmethod
    def chosen(cls, weights: Sequence[float] | None, method: SweepMethod, density: float, seed: int) -> "Sweep | None":
        """Return the sweep that options choose; None without weights. Raises UserError if they leave it half chosen."""
        if weights:
            if method == "ensemble":
                refuse_unread("an ensemble merges no tensors", density=(density, cls.density))
            if method != "dare":
                refuse_unread(f"{method} draws nothing, and only dare does", mask_seed=(seed, cls.seed))
            return cls(tuple(weights), method, density, seed)
        if (method, density, seed) != (cls.method, cls.density, cls.seed):
            raise UserError("method, density and the seed of masks are of merges: name their weights too (0:1:0.1)")
        return None


def parse_weights(text: str) -> tuple[float, ...]:
    """Return the weights of `FROM:TO:STEP` or of a list with commas. Raises ValueError for anything else."""
    if ":" not in text:
        return tuple(sorted({_finite(part) for part in text.split(",")}))
    first, last, step = (_finite(part) for part in text.split(":"))
    if step <= 0 or last < first:
        raise ValueError("the step is above 0, and the last weight not below the first")
    count = int((last - first) / step + 1e-9) + 1
    if count > _MOST_POINTS:
        raise ValueError(f"{count} weights: use at most {_MOST_POINTS}")
    return tuple(round(first + number * step, 10) for number in range(count))


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(f"{text} is not a finite number")
    return value
