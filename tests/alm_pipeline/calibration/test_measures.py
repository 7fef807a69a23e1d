"""The measures, held to hand-worked arrays, to loops over their definitions, and to scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from alm_pipeline.calibration.report.measures import (
    LOWEST,
    Predictions,
    ScoredChoices,
    fit_temperature,
    log_softmax,
    measures,
    reliability,
)

LOG = np.log


def predictions(rows: list[list[float]], answers: list[int]) -> Predictions:
    return Predictions(LOG(np.array(rows)), np.array(answers))


SIX = predictions(
    [[0.9, 0.1], [0.8, 0.2], [0.65, 0.35], [0.4, 0.6], [0.5, 0.5], [0.05, 0.95]],
    [0, 1, 0, 1, 0, 0],
)
"""right, wrong, right, right, a tie (wrong), wrong; confidences .9 .8 .65 .6 .5 .95"""


def test_six_questions_by_hand() -> None:
    found = {name: float(values[0]) for name, values in measures(SIX, 5).items()}
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["confidence"] == pytest.approx((0.9 + 0.8 + 0.65 + 0.6 + 0.5 + 0.95) / 6)
    assert found["overconfidence"] == pytest.approx(found["confidence"] - 0.5)
    assert found["nll"] == pytest.approx(-sum(map(math.log, (0.9, 0.2, 0.65, 0.6, 0.5, 0.05))) / 6)
    assert found["brier"] == pytest.approx(2 * (0.1**2 + 0.8**2 + 0.35**2 + 0.4**2 + 0.5**2 + 0.95**2) / 6)
    # bins of a fifth: .5 wrong and .6 right; .65 right and .8 wrong; .9 right and .95 wrong
    assert found["ece"] == pytest.approx((abs(1 - 1.1) + abs(1 - 1.45) + abs(1 - 1.85)) / 6)
    # by mass, five bins of six: .5 | .6 | .65 and .8 | .9 | .95, since ⌊5 (i + ½)/6⌋ is 0 1 2 2 3 4
    assert found["ace"] == pytest.approx((0.5 + 0.4 + abs(1 - 1.45) + 0.1 + 0.95) / 6)


def test_a_confidence_of_one_is_in_the_last_bin_and_edges_are_of_the_bin_below() -> None:
    correct, confidence = np.array([1.0, 1, 0, 1, 1]), np.array([1.0, 0.7, 0.3, 0.1, 0.95])
    counts = [bin_.questions for bin_ in reliability(correct, confidence, 10)]
    assert counts == [1, 0, 1, 0, 0, 0, 1, 0, 0, 2]
    last = reliability(correct, confidence, 10)[-1]
    assert (last.low, last.high, last.confidence, last.accuracy) == (0.9, 1.0, pytest.approx(0.975), 1.0)


def test_binary_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    right = generator.uniform(0.01, 0.99, 500)
    answers = generator.integers(0, 2, 500)
    found = measures(Predictions(LOG(np.stack([1 - right, right], 1)), answers))
    assert found["nll"][0] == pytest.approx(log_loss(answers, right))
    assert found["brier"][0] == pytest.approx(2 * brier_score_loss(answers, right))


def test_a_calibrated_model_has_almost_no_error() -> None:
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.ones(4), 20_000)
    answers = np.array([generator.choice(4, p=row) for row in probabilities])
    found = measures(Predictions(LOG(probabilities), answers))
    assert found["ece"][0] < 0.01
    assert found["ace"][0] < 0.01
    assert abs(found["overconfidence"][0]) < 0.01


def choices(logprobs: list[list[float]], tokens: list[list[int]], sizes: list[list[int]]) -> ScoredChoices:
    shape = [np.array(each) for each in (logprobs, tokens, sizes)]
    return ScoredChoices(shape[0], shape[1], shape[2], np.zeros(len(logprobs), np.int64))


def test_readings_divide_before_the_softmax_and_leave_missing_choices_out() -> None:
    scored = choices([[-2.0, -6.0, -np.inf], [-1.0, -2.0, -3.0]], [[1, 3, 1], [1, 1, 3]], [[2, 12, 1], [4, 4, 4]])
    for reading, divided in {
        "sum": [[-2.0, -6.0], [-1.0, -2.0, -3.0]],
        "token": [[-2.0, -2.0], [-1.0, -2.0, -1.0]],
        "bytes": [[-1.0, -0.5], [-0.25, -0.5, -0.75]],
    }.items():
        found = np.exp(scored.predictions(reading).logprobs)  # type: ignore[arg-type]
        for row, values in zip(found, divided, strict=True):
            weights = [math.exp(value) for value in values]
            assert row[: len(values)] == pytest.approx([weight / sum(weights) for weight in weights])
            assert (row[len(values) :] == 0).all()
    assert scored.predictions("token").correct.tolist() == [0, 0]  # both are ties
    assert np.isfinite(measures(scored.predictions("sum"))["entropy"][0])


@st.composite
def some_predictions(draw: st.DrawFn) -> Predictions:
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    questions, most = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    logits = generator.normal(0, draw(st.floats(0.1, 30)), (questions, most)).round(draw(st.integers(0, 3)))
    for row in logits:
        row[generator.integers(2, most + 1) :] = -np.inf
    return Predictions(log_softmax(logits), generator.integers(0, 2, questions))


def by_definition(predictions: Predictions, weights: np.ndarray, bins: int) -> dict[str, float]:
    """Every measure by loops; the bins of ACE by sorting copies, each question once per copy."""
    total, sums = weights.sum(), dict.fromkeys(("accuracy", "nll", "brier", "entropy", "confidence"), 0.0)
    by_width = [0.0] * bins
    for logprobs, answer, weight in zip(predictions.logprobs, predictions.answers, weights, strict=True):
        p = [math.exp(value) for value in logprobs]
        right = all(logprobs[answer] > value for c, value in enumerate(logprobs) if c != answer)
        conf = min(1.0, max(p))
        sums["accuracy"] += weight * right
        sums["nll"] -= weight * logprobs[answer]
        sums["brier"] += weight * sum((value - (c == answer)) ** 2 for c, value in enumerate(p))
        sums["entropy"] -= weight * sum(value * math.log(value) for value in p if value > 0)
        sums["confidence"] += weight * conf
        place = next(b for b in range(bins) if conf <= (b + 1) / bins)
        by_width[place] += weight * (right - conf)
    found = {name: value / total for name, value in sums.items()}
    found["overconfidence"] = found["confidence"] - found["accuracy"]
    found["ece"] = sum(map(abs, by_width)) / total
    return found


@settings(deadline=None, max_examples=60)
@given(some_predictions(), st.integers(1, 15))
def test_every_measure_is_its_definition_on_every_resample(predictions: Predictions, bins: int) -> None:
    weights = np.random.default_rng(bins).integers(0, 3, (4, len(predictions))).astype(float)
    weights[:, 0] += 1
    found = measures(predictions, bins, weights)
    for number, row in enumerate(weights):
        expected = by_definition(predictions, row, bins)
        assert {name: values[number] for name, values in found.items() if name in expected} == pytest.approx(
            expected, abs=1e-9
        )
    order = np.random.default_rng(0).permutation(len(predictions))
    permuted = measures(predictions.rows(order), bins, weights[:, order])
    for name, values in found.items():
        assert values == pytest.approx(permuted[name], abs=1e-9), name


def test_bins_of_equal_mass_in_a_resample() -> None:
    """Two copies of a question are as two questions that are equal, where a bin does not end between them."""
    weights = np.array([[2.0, 0.0, 1.0, 1.0, 2.0, 0.0]])
    copies = SIX.rows(np.array([0, 0, 2, 3, 4, 4]))
    assert measures(SIX, 3, weights)["ace"] == pytest.approx(measures(copies, 3)["ace"])


def test_the_temperature_is_the_one_of_the_least_nll_and_changes_no_accuracy() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(0, 1, (3000, 4))
    answers = np.array([generator.choice(4, p=np.exp(row)) for row in log_softmax(logits)])
    sure = Predictions(log_softmax(3.0 * logits), answers)
    temperature = fit_temperature(sure)
    assert temperature == pytest.approx(3.0, rel=0.08)
    grid = np.geomspace(0.5, 10, 400)
    nll = [-sure.with_temperature(each).answer_logprobs.mean() for each in grid]
    assert temperature == pytest.approx(grid[int(np.argmin(nll))], rel=0.01)
    before, after = (measures(each) for each in (sure, sure.with_temperature(temperature)))
    assert before["accuracy"] == after["accuracy"]
    assert after["ece"] < before["ece"] / 4


def test_a_model_that_is_always_right_gets_the_lowest_temperature() -> None:
    assert fit_temperature(predictions([[0.9, 0.1], [0.2, 0.8]], [0, 1])) == pytest.approx(LOWEST, rel=0.01)
