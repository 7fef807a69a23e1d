"""Conversion of list columns to flat NumPy arrays and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def flatten_lists(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return (values, offsets [rows + 1] that begin at 0) of a list column without nulls, sliced or not."""
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    return array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0]


def flatten_filled(column: pa.ChunkedArray, offsets: npt.NDArray[np.int64], fill: Any) -> npt.NDArray[Any]:
    """Return the values [offsets[-1]] of a list column, with empty rows filled up to `offsets` by `fill`."""
    values, stored_offsets = flatten_lists(column)
    if len(values) == offsets[-1]:
        return values
    filled = np.full(offsets[-1], fill, values.dtype)
    filled[np.repeat(np.diff(stored_offsets) > 0, np.diff(offsets))] = values
    return filled


def list_rows(column: pa.ChunkedArray) -> list[npt.NDArray[Any]]:
    """Split a list column into one array per row."""
    values, offsets = flatten_lists(column)
    return np.split(values, offsets[1:-1]) if len(offsets) > 1 else []


def list_array(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64], type_: pa.DataType) -> pa.ListArray:
    """Build a list column from flat values and offsets. Raises ArrowInvalid if a value does not fit the type."""
    item = pa.field("item", type_, nullable=False)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, type_), type=pa.list_(item))


def join_rows(rows: Sequence[npt.NDArray[Any]], type_: pa.DataType) -> pa.ListArray:
    """Build a list column from one array per row."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    values = np.concatenate(rows) if rows else np.zeros(0, type_.to_pandas_dtype())
    return list_array(values, offsets, type_)
