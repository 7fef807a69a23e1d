"""Other programs read the datasets as they are: Polars, DuckDB, pandas and Hugging Face `datasets`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.dataset import Dataset
from storage.schemas import Kind
from tests.storage.samples import dataset, write

Rows = list[dict[str, Any]]


def with_polars(pattern: str, _: Path) -> Rows:
    return pl.scan_parquet(pattern).collect().to_dicts()


def with_duckdb(pattern: str, _: Path) -> Rows:
    import duckdb

    found = duckdb.sql(f"SELECT * FROM '{pattern}' ORDER BY id")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def with_pandas(pattern: str, _: Path) -> Rows:
    import pandas as pd

    files = sorted(Path(pattern).parent.glob(Path(pattern).name))
    frames = [pd.read_parquet(file, dtype_backend="pyarrow") for file in files]
    return [row for frame in frames for row in frame.to_dict("records")]  # type: ignore[misc]


def with_datasets(pattern: str, cache: Path) -> Rows:
    from datasets import load_dataset

    return list(load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(cache)))


def plain(value: Any) -> Any:
    """Lists for arrays, and a NaN that equals itself."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if value is None or str(value) in ("nan", "<NA>") else value


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("read", [with_polars, with_duckdb, with_pandas, with_datasets])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_rows_are_the_shards(kind: Kind, read: Callable[[str, Path], Rows], tmp_path: Path) -> None:
    target: Dataset = dataset(str(tmp_path / "root"), kind)
    write(target, 2)
    expected = [row for shard in range(2) for row in target.read_shard(shard).to_pylist()]
    found = read(f"{target.url}/shard-*.parquet", tmp_path / "cache")
    assert [{name: plain(value) for name, value in row.items()} for row in found] == [
        {name: plain(value) for name, value in row.items()} for row in expected
    ]
