"""List columns are converted to NumPy and back unchanged, however they are sliced."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.columns import flatten_filled, flatten_lists, join_rows, list_array, list_rows

_ROWS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4), max_size=8)
_CUTS = st.lists(st.integers(0, 8), max_size=3)


def _joined(rows: list[list[int]]) -> pa.ListArray:
    return join_rows([np.array(row, np.int32) for row in rows], pa.int32())


def _chunked(rows: list[list[int]], cuts: list[int]) -> pa.ChunkedArray:
    """Return the rows as a column of slices of one array, some of them empty."""
    whole, ends = _joined(rows), sorted(min(cut, len(rows)) for cut in cuts)
    starts = [0, *ends]
    pieces = [whole.slice(start, end - start) for start, end in zip(starts, [*ends, len(rows)], strict=True)]
    return pa.chunked_array(pieces, whole.type)


@settings(derandomize=True, deadline=None)
@given(_ROWS)
def test_joined_rows_are_the_rows(rows: list[list[int]]) -> None:
    column = _joined(rows)
    column.validate(full=True)
    assert column.type == pa.list_(pa.field("item", pa.int32(), nullable=False))
    assert column.to_pylist() == rows


@settings(derandomize=True, deadline=None)
@given(_ROWS, _CUTS, st.integers(0, 8), st.integers(0, 8))
def test_a_sliced_column_in_pieces_gives_its_rows(
    rows: list[list[int]], cuts: list[int], start: int, size: int
) -> None:
    column = _chunked(rows, cuts).slice(min(start, len(rows)), size)
    assert [row.tolist() for row in list_rows(column)] == rows[start : start + size]
    values, offsets = flatten_lists(column)
    assert values.dtype == np.int32
    assert (offsets[0], offsets[-1], len(offsets)) == (0, len(values), len(column) + 1)
    assert list_array(values, offsets, pa.int32()).to_pylist() == column.to_pylist()


@pytest.mark.parametrize(
    "column", [pa.chunked_array([], pa.list_(pa.uint8())), pa.chunked_array([[]], pa.list_(pa.uint8()))]
)
def test_no_rows(column: pa.ChunkedArray) -> None:
    values, offsets = flatten_lists(column)
    assert values.tolist() == []
    assert offsets.tolist() == [0]
    assert list_rows(column) == []


@pytest.mark.parametrize("type_", [pa.int32(), pa.uint8(), pa.float32()])
def test_no_rows_are_joined_to_no_rows(type_: Any) -> None:
    assert join_rows([], type_).to_pylist() == []
    assert join_rows([], type_).type.value_type == type_


def test_nan_is_a_number_and_not_null() -> None:
    column = join_rows([np.array([np.nan, -np.inf, -0.0], np.float32)], pa.float32())
    assert column.values.null_count == 0
    np.testing.assert_array_equal(column.values.to_numpy(), np.array([np.nan, -np.inf, -0.0], np.float32))


@pytest.mark.parametrize(("values", "offsets"), [([2**31], [0, 1]), ([1], [0, 2**31])])
def test_values_that_do_not_fit_are_refused(values: list[int], offsets: list[int]) -> None:
    with pytest.raises(pa.ArrowInvalid, match="not in range"):
        list_array(np.array(values), np.array(offsets), pa.int32())


@settings(derandomize=True, deadline=None)
@given(_ROWS, _CUTS, st.lists(st.booleans(), min_size=8, max_size=8))
def test_empty_rows_are_filled(rows: list[list[int]], cuts: list[int], left_out: list[bool]) -> None:
    expected = [[-1] * len(row) if out else row for row, out in zip(rows, left_out, strict=False)]
    held = [[] if out else row for row, out in zip(rows, left_out, strict=False)]
    offsets = np.cumsum([0, *map(len, rows)])
    assert flatten_filled(_chunked(held, cuts), offsets, -1).tolist() == [value for row in expected for value in row]
