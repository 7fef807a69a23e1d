"""Means, intervals and differences, against formulas and numbers by hand; tables and pictures of them."""

import math
from pathlib import Path

import pytest

from benchmarks.suite.outcomes import Interval, Outcomes, differences
from benchmarks.suite.tables import draw, markdown


# the 97.5 % quantiles of Student's t in any table of them
@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262)])
def test_intervals_are_of_students_t(count: int, quantile: float) -> None:
    values = [float(number) for number in range(count)]
    variance = sum((value - (count - 1) / 2) ** 2 for value in values) / (count - 1)
    interval = Interval.of(values)
    assert interval.mean == pytest.approx((count - 1) / 2)
    assert interval.half == pytest.approx(quantile * math.sqrt(variance / count))


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
