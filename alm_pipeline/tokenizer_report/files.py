"""The tables of a tokenizer report as Parquet files, one each, which any library reads."""

from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alm_pipeline.models.new_folder import new_folder
from alm_pipeline.tokenizer_report.report import TokenizerReport

_TEXT = ("tokenizer", "other", "corpus", "group", "model", "reason", "text")
_SHARES = (
    *("bytes_per_token", "low", "high", "relative_tokens", "share", "share_of_uses", "share_of_bytes", "mean_bytes"),
    *("median_bytes", "tokens_per_chunk", "other_tokens_per_chunk", "one_to_one"),
)
_COLUMNS = {
    "tokenizers": ("tokenizer", "tokens", "special_tokens", "rows", "mean_bytes", "used", "never_used"),
    "lengths": (
        *("corpus", "group", "texts", "text_bytes", "tokenizer", "text_tokens", "bytes_per_token", "low", "high"),
        "relative_tokens",
    ),
    "overlap": ("tokenizer", "other", "shared", "share", "share_of_uses", "share_of_bytes"),
    "chunks": (
        *("tokenizer", "other", "chunks", "mean_bytes", "median_bytes", "largest_bytes", "tokens_per_chunk"),
        *("other_tokens_per_chunk", "one_to_one"),
    ),
    "chunk_tokens": ("tokenizer", "other", "tokens", "other_tokens", "chunks"),
    "chunk_bytes": ("tokenizer", "other", "bytes", "chunks"),
    "transfer": (
        *("model", "tokenizer", "rows", "table_parameters", "parameters", "parameter_change", "relative_tokens"),
        "context_bytes",
    ),
    "left_out": ("tokenizer", "corpus", "reason", "texts"),
    "uses": ("tokenizer", "id", "spelling", "text", "is_special", "uses"),
}


def schema_of(table: str) -> pa.Schema:
    """Return the columns of a table's file."""
    return pa.schema([(name, _type(name)) for name in _COLUMNS[table]])


def _type(column: str) -> pa.DataType:
    if column in _TEXT:
        return pa.string()
    if column in _SHARES:
        return pa.float64()
    return {"spelling": pa.binary(), "is_special": pa.bool_()}.get(column, pa.int64())


def write_tables(report: TokenizerReport, folder: Path) -> None:
    """Write `NAME.parquet` for each table into a new folder. Raises UserError if that exists and is not empty."""
    with new_folder(folder) as written:
        for field in fields(report):
            table = pa.Table.from_pylist(getattr(report, field.name), schema_of(field.name))
            pq.write_table(table, written / f"{field.name}.parquet", compression="zstd")
