"""Numbers of a plan as text: an estimate is marked, and has no more digits than it is worth."""

import pytest

from alm_pipeline.planning.numbers import amount_text, bytes_text, duration_text
from alm_pipeline.planning.plan import Amount, total


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Amount.known(59_673), "59,673"),
        (Amount(value=59_673), "~59,700"),
        (Amount(value=7), "~7"),
        (Amount(value=0), "~0"),
        (None, "unknown"),
    ],
)
def test_amounts(amount: Amount | None, text: str) -> None:
    assert amount_text(amount) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (212_125, "212 kB"), (5.67e6, "5.67 MB"), (2e15, "2,000 TB")],
)
def test_bytes(value: float, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.2, "1 s"), (40, "40 s"), (100, "2 min"), (3 * 3600, "3.0 h"), (40 * 86400, "40 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_sum_is_known_where_all_of_it_is() -> None:
    assert total([Amount.known(1), Amount.known(2)]) == Amount.known(3)
    assert total([Amount.known(1), Amount(value=2)]) == Amount(value=3)
    assert total([Amount.known(1), None]) is None
