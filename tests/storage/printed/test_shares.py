"""A percentage is never rounded up to 100 % or down to 0 %."""

import pytest

from storage.printed.shares import percent


@pytest.mark.parametrize(
    ("part", "whole", "digits", "text"),
    [
        (1, 1, 2, "100.00%"),
        (99_999_999, 100_000_000, 2, ">99.99%"),
        (99_995, 100_000, 2, ">99.99%"),
        (9_999, 10_000, 2, "99.99%"),
        (999, 1000, 0, ">99%"),
        (0, 9, 2, "0.00%"),
        (1, 10**9, 2, "<0.01%"),
        (123, 1000, 1, "12.3%"),
        (0, 0, 2, "–"),
        (0.9999999, 1, 1, ">99.9%"),
    ],
)
def test_all_and_nothing_are_exact(part: float, whole: float, digits: int, text: str) -> None:
    assert percent(part, whole, digits) == text
