"""The measures of written text, against counts by hand, and the reverse KL against exact numbers."""

import math

import numpy as np
import pyarrow as pa
import pytest

from alm_pipeline.methods.units import UNITS, unit_table
from alm_pipeline.rounds.measures import REPETITION, WRITTEN, repetition
from alm_pipeline.rounds.report import RoundsReport


@pytest.mark.parametrize(
    ("text", "repeated", "runs"),
    [
        ("", 0, 0),
        ("one two three", 0, 0),
        ("one two three four", 0, 1),
        ("a b c d a b c d", 1, 5),
        ("go go go go go go", 2, 3),
        ("ab" * 40, 75, 77),
        ("東京は日本の首都です。" * 2, 8, 19),
    ],
)
def test_repetition_counts_runs_of_four_words(text: str, repeated: int, runs: int) -> None:
    assert repetition(text) == (repeated, runs)
    words = text.split() if len(text.split()) * 16 >= len(text) else list(text)
    found = [tuple(words[k : k + 4]) for k in range(len(words) - 3)]
    assert repeated == sum(run in found[:place] for place, run in enumerate(found))


def table(values: dict[str, tuple[float, float]]) -> pa.Table:
    return unit_table(WRITTEN, REPETITION, values).cast(UNITS)


def test_students_are_compared_by_prompt() -> None:
    chance = np.random.default_rng(0)
    hard = chance.uniform(0, 10, 50)
    units = [
        {f"p{k}": (float(hard[k] + shift + noise), 1.0) for k, noise in enumerate(chance.normal(0, 0.01, 50))}
        for shift in (0.0, 0.5)
    ]
    first, second = RoundsReport.of([table(of_student) for of_student in units]).measures
    assert (first.student, second.student) == (0, 1)
    assert first.value.value == pytest.approx(np.mean([total for total, _ in units[0].values()]))
    assert first.difference is None
    assert second.difference is not None
    low, high = second.difference.low, second.difference.high
    assert low is not None
    assert high is not None
    # prompts differ by far more than the students do, but that is common to both
    assert 0.49 < low < second.difference.value < high < 0.51
    assert second.value.high - second.value.low > 1  # type: ignore[operator]


def test_a_prompt_that_a_student_wrote_nothing_on_counts_for_nothing() -> None:
    report = RoundsReport.of([table({"a": (1, 2), "b": (3, 4)}), table({"b": (1, 4)})])
    assert [measure.value.value for measure in report.measures] == [4 / 6, 1 / 4]
    rows = report.table().to_pylist()
    assert [row["value"] for row in rows] == [4 / 6, 1 / 4]
    assert rows[0]["difference"] is None
    assert all(
        value is None or not isinstance(value, float) or math.isfinite(value) for row in rows for value in row.values()
    )
    assert report.units().column_names == ["student", *UNITS.names]
