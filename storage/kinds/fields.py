"""The fields that columns are made of."""

import pyarrow as pa


def required(name: str, type_: pa.DataType) -> pa.Field:
    """Return a column without nulls."""
    return pa.field(name, type_, nullable=False)


def list_of(name: str, type_: pa.DataType) -> pa.Field:
    """Return a column of lists, without nulls in or between them."""
    return pa.field(name, pa.list_(pa.field("item", type_, nullable=False)), nullable=False)


ID = required("id", pa.string())
