"""Means, intervals and differences, against formulas and numbers by hand; tables and pictures of them."""

import math
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.suite.outcomes import Interval, Outcomes, differences
from benchmarks.suite.tables import draw, markdown


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_intervals_are_of_students_t(count: int) -> None:
    values = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 1.5, 2.5, 3.5, 4.5][:count]
    low, high = stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=stats.sem(values))
    interval = Interval.of(values)
    assert interval.mean - interval.half == pytest.approx(low, rel=1e-3)
    assert interval.mean + interval.half == pytest.approx(high, rel=1e-3)


def test_a_single_seed_has_no_interval() -> None:
    assert Interval.of([2.0]).mean == 2.0
    assert math.isnan(Interval.of([2.0]).half)


FOUND: dict[str, list[Outcomes]] = {
    "alm": [{"bits": 1.0, "tokens": 1000.0}, {"bits": 2.0, "tokens": None}],
    "sft": [{"bits": 0.9, "tokens": 500.0}, {"bits": 1.8, "tokens": 700.0}],
}


def test_differences_are_seed_by_seed() -> None:
    assert differences(FOUND["sft"], FOUND["alm"], "bits") == pytest.approx([-0.1, -0.2])
    assert differences(FOUND["sft"], FOUND["alm"], "tokens") == [-500.0]


def test_a_table_has_means_and_differences_from_the_first_row() -> None:
    half = 12.706 * math.sqrt(0.005 / 2)
    assert markdown(FOUND).splitlines() == [
        "| | bits | tokens |",
        "|---|---|---|",
        "| alm | 1.5000 | reached in 1 of 2 |",
        f"| sft | 1.3500 (−0.1500 ± {half:.4f}) | 600 (−500) |",
    ]


def test_a_picture_is_drawn_even_if_nothing_was_reached(tmp_path: Path) -> None:
    nothing: dict[str, list[Outcomes]] = {"alm": [{"bits": 1.0, "tokens": None}]}
    draw({**FOUND, **nothing}, "A question?", tmp_path / "pictures" / "picture.png")
    assert (tmp_path / "pictures" / "picture.png").read_bytes().startswith(b"\x89PNG")
