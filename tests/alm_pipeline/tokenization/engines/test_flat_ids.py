"""Ids of several texts as two arrays, against lists."""

import random

import numpy as np
import pytest

from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from tests.alm_pipeline.tokenization.engines.wrong_ids import with_rows

Rows = list[list[int]]


def drawn(seed: int, rows: int) -> Rows:
    draw = random.Random(seed)
    return [[draw.randrange(2**31) for _ in range(draw.choice((0, 0, 1, 5)))] for _ in range(rows)]


@pytest.mark.parametrize("rows", [[], [[]], [[], [], []], drawn(1, 7), drawn(2, 30)])
def test_they_are_the_lists(rows: Rows) -> None:
    flat = FlatIds.of(rows)
    assert (flat.ids.dtype, flat.offsets.dtype) == (np.int32, np.int64)
    assert len(flat) == len(rows)
    assert flat.lists() == rows == [flat.row(index).tolist() for index in range(len(rows))]


@pytest.mark.parametrize("sizes", [[], [0], [3], [2, 0, 5], [0, 0]])
def test_parts_are_joined(sizes: list[int]) -> None:
    parts = [drawn(seed, size) for seed, size in enumerate(sizes)]
    assert FlatIds.join([FlatIds.of(part) for part in parts]).lists() == [row for part in parts for row in part]


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_replaced_and_differences_found(seed: int) -> None:
    rows = drawn(seed, 20)
    flat, draw = FlatIds.of(rows), random.Random(seed)
    others = {draw.randrange(20): np.array([draw.randrange(9)] * draw.randrange(4), np.int32) for _ in range(seed)}
    expected = [others[index].tolist() if index in others else row for index, row in enumerate(rows)]
    replaced = with_rows(flat, others)
    assert replaced.lists() == expected
    first = next((index for index, (row, other) in enumerate(zip(rows, expected, strict=True)) if row != other), None)
    assert flat.first_difference(replaced) == first


def test_a_token_that_moves_to_the_next_text_is_a_difference() -> None:
    assert FlatIds.of([[1], [2, 3]]).first_difference(FlatIds.of([[1, 2], [3]])) == 0
