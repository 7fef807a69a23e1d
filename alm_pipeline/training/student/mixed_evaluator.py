"""The evaluation of a student of a mixture: on each source's held-out examples, and their means by the weights.

A number of the whole is the mean of the sources' numbers, each counted by its share of the training: it does not depend
on how large the sources are. A source that does not have it (no words, no chunks) does not count.
"""

import math
from collections.abc import Mapping

from transformers import PreTrainedModel

from alm_pipeline.evaluation.held_out import Measured
from alm_pipeline.evaluation.words import Distance
from alm_pipeline.training.loop.evaluations import Evaluation
from alm_pipeline.training.student.evaluator import HeldOutEvaluator

_SUMS = ("examples", "chunks")


class MixedEvaluator:
    """Each source's held-out examples in memory, on which students are evaluated."""

    def __init__(self, evaluators: Mapping[str, HeldOutEvaluator], weights: Mapping[str, float]) -> None:
        """Both are by source; the weights have the sum 1."""
        self.evaluators, self.weights = evaluators, weights

    def __call__(self, model: PreTrainedModel, title: str | None = None) -> Evaluation:
        """Evaluate the student. Progress is shown under `title`, or not at all without one."""
        found = {name: evaluate(model, _of(title, name)) for name, evaluate in self.evaluators.items()}
        by_source = {name: evaluation.metrics for name, evaluation in found.items()}
        samples = [sample for evaluation in found.values() for sample in evaluation.samples]
        return Evaluation(self._mean(by_source), samples, by_source)

    def over_all(self, model: PreTrainedModel, drawn: Evaluation, title: str) -> Evaluation:
        """Return OVER_ALL over all held-out examples. `drawn` is the model's evaluation on the drawn ones."""
        by_source = {
            name: evaluator.over_all(model, Evaluation(drawn.by_source[name], []), f"{title} {name}").metrics
            for name, evaluator in self.evaluators.items()
        }
        return Evaluation(self._mean(by_source), [], by_source)

    def _mean(self, by_source: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for metrics in by_source.values() for name in metrics)
        return {
            name: sum(metrics.get(name, 0) for metrics in by_source.values())
            if name in _SUMS
            else mean({source: metrics[name] for source, metrics in by_source.items() if name in metrics}, self.weights)
            for name in names
        }


def _of(title: str | None, name: str) -> str | None:
    return title and f"{title} {name}"


def mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the mean of the sources' values by their weights."""
    return sum(weights[name] * value for name, value in values.items()) / sum(weights[name] for name in values)


def mean_measured(measured: Mapping[str, Measured], weights: Mapping[str, float]) -> Measured:
    """Return the mean of the sources' measures by weights of the sum 1; sources are independent samples."""
    distances = {name: each.distance for name, each in measured.items() if each.distance}
    kl_errors = {name: distance.standard_error for name, distance in distances.items()}
    distance = (
        Distance(mean({name: each.kl for name, each in distances.items()}, weights), _mean_error(kl_errors, weights))
        if distances
        else None
    )
    errors = {name: each.standard_error for name, each in measured.items()}
    bits = mean({name: each.bits_per_byte for name, each in measured.items()}, weights)
    return Measured(bits, _mean_error(errors, weights), distance)


def _mean_error(errors: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """Return the standard error of a mean of independent values; None if one of theirs is unknown."""
    total = sum(weights[name] for name in errors)
    squares = [(weights[name] / total * error) ** 2 for name, error in errors.items() if error is not None]
    return math.sqrt(sum(squares)) if len(squares) == len(errors) else None
