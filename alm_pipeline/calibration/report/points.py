"""Accuracy against calibration: every model's measures with intervals, the front, and whether a merge helps.

A weight λ must not be chosen on the questions that it is reported on. So the questions are split into halves, by
clusters: λ and temperatures are chosen on the validation half, and judged on the test half.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from alm_pipeline.calibration.report.measures import (
    Floats,
    Measure,
    Predictions,
    ScoredChoices,
    fit_temperature,
    measures,
    reliability,
)
from alm_pipeline.calibration.report.resampling import Flags, dominates, on_front, validation_half
from alm_pipeline.calibration.report.settings import READINGS, Reading, ReportSettings
from alm_pipeline.evaluation.bootstrap import percentiles, resample_counts
from storage.errors import UserError

Role = Literal["base", "tuned", "merge", "model"]
Half = Literal["all", "validation", "test"]
HALVES: tuple[Half, ...] = get_args(Half)
CERTAIN = 0.95
"""the share of resamples from which on a difference is called certain"""
_LEAST_CLUSTERS = 4


@dataclass(frozen=True)
class Point:
    """A model of the report, and its scores."""

    name: str
    role: Role
    weight: float | None
    """λ; None for a model that was not merged from two"""
    scores: ScoredChoices


@dataclass(frozen=True)
class Estimate:
    """A measure on some questions, with its 95 % interval over resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PointMeasures:
    """The measures of one model on one half, under one reading."""

    name: str
    role: Role
    weight: float | None
    temperature: float | None
    """by which its log-probabilities were divided; None if they were not"""
    estimates: Mapping[Measure, Estimate]
    resampled: Mapping[Measure, Floats] = field(repr=False)
    """[R] of each measure, by resamples that all models share"""
    predictions: Predictions = field(repr=False)
    on_front: bool | None = None
    """whether no other model is at least as accurate and as well calibrated; None if it was scaled"""
    front_share: float | None = None
    """the share of resamples in which it is on the front"""

    def value(self, measure: Measure) -> float:
        return self.estimates[measure].value


@dataclass(frozen=True)
class Verdict:
    """Whether a merge helps, under one reading."""

    reading: Reading
    chosen: float | None
    """the weight chosen on the validation half; None if a parent was"""
    shares: Mapping[str, float]
    """of the resamples of the test half in which the chosen merge is better, by what"""
    sentence: str


@dataclass(frozen=True)
class CalibrationReport:
    """The measures of all models under all readings on both halves, and the verdicts."""

    questions: Mapping[Half, int]
    clusters: Mapping[Half, int]
    left_out: Mapping[str, int]
    settings: ReportSettings
    measures: Mapping[tuple[Reading, Half], Sequence[PointMeasures]]
    verdicts: Sequence[Verdict]
    """one for each reading; none if nothing was merged"""

    @property
    def is_sweep(self) -> bool:
        return bool(self.verdicts)

    @property
    def shown_half(self) -> Half:
        """The half that tables and pictures show: of a sweep the one that nothing was chosen on."""
        return "test" if self.is_sweep else "all"

    def frontier(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each model, reading, half and measure."""
        for (reading, half), points in self.measures.items():
            for point in points:
                for measure, estimate in point.estimates.items():
                    yield {
                        "model": point.name,
                        "weight": point.weight,
                        "temperature": point.temperature,
                        "reading": reading,
                        "questions": half,
                        "n": self.questions[half],
                        "measure": measure,
                        "value": estimate.value,
                        "low": estimate.low,
                        "high": estimate.high,
                        "on_front": point.on_front,
                        "front_share": point.front_share,
                    }

    def reliability(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each model, reading, half and bin of equal width."""
        for (reading, half), points in self.measures.items():
            for point in points:
                predictions = point.predictions
                for bin_ in reliability(predictions.correct, predictions.confidence, self.settings.bins):
                    keys = {"model": point.name, "weight": point.weight, "temperature": point.temperature}
                    numbers = {name: value for name, value in vars(bin_).items() if name != "questions"}
                    yield {
                        **keys,
                        "reading": reading,
                        "questions": half,
                        **numbers,
                        "questions_in_bin": bin_.questions,
                    }


def require_clusters(count: int, what: str) -> None:
    """Raise UserError if there are too few clusters to split; `what` says of what, after the word `clusters`."""
    if count < _LEAST_CLUSTERS:
        raise UserError(
            f"{count} clusters {what}: at least {_LEAST_CLUSTERS} are needed to choose on one half and report on the "
            "other"
        )


def make_report(
    points: Sequence[Point],
    clusters: np.ndarray,
    left_out: Mapping[str, int] | None = None,
    settings: ReportSettings | None = None,
) -> CalibrationReport:
    """Measure points that were scored on the same questions; `clusters` [Q] numbers the cluster of each.

    Raises UserError if there are too few clusters to split.
    """
    settings = settings or ReportSettings()
    require_clusters(len(np.unique(clusters)), "of questions were scored by all models")
    is_validation = validation_half(clusters, settings.seed)
    chosen: Mapping[Half, Flags] = {
        "all": np.ones(len(clusters), bool),
        "validation": is_validation,
        "test": ~is_validation,
    }
    found = {
        (reading, half): _measured(points, reading, chosen[half], clusters, is_validation, settings, half)
        for reading in READINGS
        for half in HALVES
    }
    merged = any(point.role == "merge" for point in points)
    verdicts = [_verdict(reading, found[reading, "validation"], found[reading, "test"]) for reading in READINGS]
    return CalibrationReport(
        questions={half: int(rows.sum()) for half, rows in chosen.items()},
        clusters={half: len(np.unique(clusters[rows])) for half, rows in chosen.items()},
        left_out=dict(left_out or {}),
        settings=settings,
        measures=found,
        verdicts=verdicts if merged else [],
    )


def _measured(
    points: Sequence[Point],
    reading: Reading,
    rows: Flags,
    clusters: np.ndarray,
    is_validation: Flags,
    settings: ReportSettings,
    half: Half,
) -> list[PointMeasures]:
    """Measure every point on some questions; on the test half also models with a temperature from the other half."""
    weights_RQ = resample_counts(clusters[rows], settings.resamples, settings.seed).astype(np.float64)

    def measured(point: Point, predictions: Predictions, temperature: float | None) -> PointMeasures:
        values, resampled = (measures(predictions, settings.bins, weights) for weights in (None, weights_RQ))
        estimates = {name: Estimate(float(values[name][0]), *percentiles(resampled[name])) for name in values}
        return PointMeasures(point.name, point.role, point.weight, temperature, estimates, resampled, predictions)

    found = [measured(point, point.scores.rows(rows).predictions(reading), None) for point in points]
    found = _with_front(found)
    if half == "test":
        for point in points:
            if point.role in ("tuned", "model"):
                temperature = fit_temperature(point.scores.rows(is_validation).predictions(reading))
                scaled = point.scores.rows(rows).predictions(reading).with_temperature(temperature)
                found.append(measured(point, scaled, temperature))
    return found


def _with_front(points: Sequence[PointMeasures]) -> list[PointMeasures]:
    accuracy_L, ece_L = (np.array([[point.value(name) for point in points]]) for name in ("accuracy", "ece"))
    resampled = (np.stack([point.resampled[name] for point in points], 1) for name in ("accuracy", "ece"))
    front, shares = on_front(accuracy_L, ece_L)[0], on_front(*resampled).mean(0)
    columns = zip(points, front.tolist(), shares.tolist(), strict=True)
    return [
        PointMeasures(**{**vars(point), "on_front": is_on, "front_share": share}) for point, is_on, share in columns
    ]


def _verdict(reading: Reading, validation: Sequence[PointMeasures], test: Sequence[PointMeasures]) -> Verdict:
    """Choose the point of the least NLL, of those as accurate as both parents, and judge it on the test half."""
    of_role = {point.role: point for point in validation}
    if not {"base", "tuned", "merge"} <= of_role.keys():
        return Verdict(reading, None, {}, "")
    least = max(of_role[parent].value("accuracy") for parent in ("base", "tuned"))
    able = [point for point in validation if point.value("accuracy") >= least]
    chosen = min(able, key=lambda point: point.value("nll"))
    if chosen.role != "merge":
        return Verdict(
            reading,
            None,
            {},
            f"No λ helps: on the validation half, the {chosen.role} model has the least NLL "
            f"({chosen.value('nll'):.3f} nats) of the models that are as accurate as both parents.",
        )
    on_test = {point.name: point for point in test if point.temperature is None}
    parents: dict[Role, PointMeasures] = {
        point.role: point for point in on_test.values() if point.role in ("base", "tuned")
    }
    shares = _shares(on_test[chosen.name], parents["base"], parents["tuned"])
    return Verdict(reading, chosen.weight, shares, _sentence(on_test[chosen.name], parents, shares))


PARETO, STRONG = "more accurate than both parents and better calibrated than the child", "dominates both parents"
LOWER_NLL = "lower NLL than both parents"


def _shares(point: PointMeasures, base: PointMeasures, tuned: PointMeasures) -> dict[str, float]:
    """Return in which share of the test half's resamples the point is better, by what."""
    accuracy, ece, nll = (
        [each.resampled[name] for each in (point, base, tuned)] for name in ("accuracy", "ece", "nll")
    )
    above = accuracy[0] > np.maximum(accuracy[1], accuracy[2])
    strong = dominates(accuracy[0], ece[0], accuracy[1], ece[1]) & dominates(accuracy[0], ece[0], accuracy[2], ece[2])
    return {
        PARETO: float((above & (ece[0] < ece[2])).mean()),
        STRONG: float(strong.mean()),
        LOWER_NLL: float((nll[0] < np.minimum(nll[1], nll[2])).mean()),
    }


def _sentence(point: PointMeasures, parents: Mapping[Role, PointMeasures], shares: Mapping[str, float]) -> str:
    """Return what the test half says of a weight that was chosen on the validation half."""
    numbers = "; ".join(
        f"{title} {point.value(name):.3f} (base {parents['base'].value(name):.3f}, "
        f"tuned {parents['tuned'].value(name):.3f})"
        for name, title in _TITLES.items()
    )
    counted = "; ".join(f"{what}, {share:.0%}" for what, share in shares.items())
    certain = [what for what, share in shares.items() if share >= CERTAIN]
    if PARETO in certain or STRONG in certain:
        judged = f"λ = {point.weight:g} helps"
    elif LOWER_NLL in certain:
        judged = f"λ = {point.weight:g} lowers the NLL below both parents'; no certain difference in accuracy and ECE"
    else:
        judged = f"No λ helps for certain: λ = {point.weight:g} was chosen on the validation half"
    return f"{judged}. On the test half: {numbers}. Shares of resamples: {counted}."


_TITLES: Mapping[Measure, str] = {"accuracy": "accuracy", "ece": "ECE", "nll": "NLL"}
