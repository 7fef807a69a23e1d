"""The report of a comparison: its measures, what training cost, and how they are stored and printed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from alm_pipeline.methods.registry import MethodRun
from alm_pipeline.methods.statistics import Estimate, Measure, MixedDomains, measures
from alm_pipeline.training.student.curves import TrainingCurves, read_curves


@dataclass(frozen=True)
class Training:
    """What the training of one student cost, and how it went."""

    method: str
    seed: int
    url: str
    curves: TrainingCurves

    @classmethod
    def of(cls, run: MethodRun, url: str) -> "Training":
        return cls(run.method, run.seed, url, read_curves(url))

    def cost(self) -> "Cost | None":
        """Return the medians over the steps; None without a step."""
        speed = self.curves.speed
        columns = [speed.get(column, np.zeros(0)) for column in ("seconds", "tokens_per_second", "memory_bytes")]
        return Cost(*(float(np.median(values)) for values in columns)) if all(map(len, columns)) else None


class Cost(NamedTuple):
    """What trainings cost: medians over the steps, means over the seeds."""

    seconds_per_step: float
    tokens_per_second: float
    memory_bytes: float
    """on a GPU the peak of its tensors, on a CPU the process's"""


@dataclass(frozen=True)
class ComparisonReport:
    """The measures of all methods and what they cost."""

    corpus: str
    """the one that is trained on, which is also the first domain"""
    shares: Mapping[str, float]
    """of the sources that it is a mixture of, which are domains as well; empty for a single corpus"""
    methods: tuple[str, ...]
    """the first one is the reference; the last ones are those that no method made"""
    measures: Sequence[Measure]
    trainings: Sequence[Training]
    tables: Mapping[str, Sequence[pa.Table]]
    """the units of each method's students, seed by seed"""

    @classmethod
    def of(
        cls,
        tables: Mapping[str, Sequence[pa.Table]],
        trainings: Sequence[Training],
        reference: str,
        corpus: str,
        shares: Mapping[str, float] | None = None,
    ) -> "ComparisonReport":
        found = measures(tables, reference, MixedDomains(corpus, shares) if shares else None)
        return cls(corpus, shares or {}, tuple(tables), found, trainings, tables)

    @property
    def seeds(self) -> int:
        return max(len(of_seeds) for of_seeds in self.tables.values())

    @property
    def domains(self) -> list[str]:
        return list(dict.fromkeys(measure.domain for measure in self.measures))

    def cost(self, method: str) -> Cost | None:
        """Return what a method's trainings cost; None if they had no step."""
        costs = [cost for training in self.trainings if training.method == method and (cost := training.cost())]
        return Cost(*np.mean(costs, axis=0).tolist()) if costs else None

    def units(self) -> pa.Table:
        """Return all measurements by method and seed: the columns of `UNITS`, and two before them."""
        parts = [
            table.add_column(0, "seed", pa.array([seed] * len(table), pa.int64())).add_column(
                0, "method", pa.array([method] * len(table), pa.string())
            )
            for method, of_seeds in self.tables.items()
            for seed, table in enumerate(of_seeds)
        ]
        return pa.concat_tables(parts)

    def document(self) -> dict[str, Any]:
        """Return the report as plain values, without NaN."""
        return {
            "corpus": self.corpus,
            "shares": dict(self.shares),
            "methods": list(self.methods),
            "reference": self.methods[0],
            "seeds": self.seeds,
            "measures": [row for measure in self.measures for row in _rows(measure)],
            "costs": {method: cost._asdict() for method in self.methods if (cost := self.cost(method))},
            "students": [
                {"method": training.method, "seed": training.seed, "url": training.url} for training in self.trainings
            ],
        }


def _rows(measure: Measure) -> Iterator[dict[str, Any]]:
    for method, value in measure.values.items():
        difference = measure.differences.get(method, Estimate(math.nan, math.nan))
        yield {
            "domain": measure.domain,
            "measure": measure.name,
            "method": method,
            "value": _finite(value.value),
            "half": _finite(value.half),
            "difference": _finite(difference.value),
            "difference_half": _finite(difference.half),
            "units": measure.units,
            "varied": measure.varied,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
