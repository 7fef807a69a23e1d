"""The outcomes of a student, and how a variant's differ from its reference's, seed by seed."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from benchmarks.suite.factors import Experiment, PairName
from benchmarks.suite.runs import Student, Suite

RETENTION = 0.8
_T_95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""the 97.5 % quantile of Student's t by degrees of freedom"""
Outcomes = Mapping[str, float | None]
"""by the column of the table; lower is better in all; None: not reached"""


def outcomes(student: Student) -> Outcomes:
    """Measure a student on held-out texts of all domains."""
    values: dict[str, float | None] = {}
    for domain, of_domain in student.measures().items():
        values[f"{domain}, bits per byte"] = of_domain.bits_per_byte
        values[f"{domain}, KL"] = of_domain.kl
    values[f"tokens to {RETENTION:.0%}"] = student.tokens_to(RETENTION)
    return values


def run_experiment(
    suite: Suite, experiment: Experiment, pair: PairName, seeds: Sequence[int]
) -> dict[str, list[Outcomes]]:
    """Return the outcomes of each variant, one per seed; what is missing in the store is trained first.

    Seed after seed, so that an interrupted run leaves whole comparisons.
    """
    found: dict[str, list[Outcomes]] = {variant.name: [] for variant in experiment.variants}
    for seed in seeds:
        for variant in experiment.variants:
            print(f"{pair}, seed {seed}: {variant.name}", flush=True)
            found[variant.name].append(outcomes(suite.trained(pair, variant, seed)))
    return found


class Interval(NamedTuple):
    """The mean of some seeds, and half of its 95 % interval (Student's t); NaN of a single seed."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        if len(values) < 2:
            return cls(mean(values), math.nan)
        quantile = _T_95[len(values) - 1] if len(values) <= len(_T_95) else 1.96
        return cls(mean(values), quantile * stdev(values) / math.sqrt(len(values)))


def differences(variant: Sequence[Outcomes], reference: Sequence[Outcomes], column: str) -> list[float]:
    """Return the variant's outcome minus the reference's of each seed in which both have it."""
    pairs = ((one[column], other[column]) for one, other in zip(variant, reference, strict=True))
    return [one - other for one, other in pairs if one is not None and other is not None]


def save(file: Path, found: Mapping[str, Sequence[Outcomes]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({name: list(rows) for name, rows in found.items()}, indent=1), encoding="utf-8")
