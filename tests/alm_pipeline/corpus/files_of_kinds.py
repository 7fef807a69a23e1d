"""One file of each format with the same three rows, for tests that damage them."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from alm_pipeline.config import FileFormat
from tests.alm_pipeline.corpus.helpers import jsonl

TEXTS = ['größe, "eins"', "two\nlines\tand more", "three"]
ROWS = [{"text": text, "n": str(number)} for number, text in enumerate(TEXTS)]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, write_page_checksum=True)
    return bytes(sink.getvalue())


def arrow_stream(rows: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return bytes(sink.getvalue())


def arrow_file(rows: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return bytes(sink.getvalue())


def separated(rows: list[dict[str, Any]], separator: str) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, fieldnames=list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


WRITE: dict[FileFormat, tuple[str, Callable[[list[dict[str, Any]]], bytes]]] = {
    "parquet": (".parquet", parquet),
    "arrow": (".arrow", arrow_stream),
    "jsonl": (".jsonl", lambda rows: jsonl(*rows)),
    "json": (".json", lambda rows: json.dumps(rows, indent=1).encode()),
    "csv": (".csv", lambda rows: separated(rows, ",")),
    "tsv": (".tsv", lambda rows: separated(rows, "\t")),
    "text": (".txt", lambda rows: "\n".join(row["text"] for row in rows).encode()),
}
"""For each format, the ending of its files and what writes rows as one."""


def lz4(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": (".gz", gzip.compress),
    "bz2": (".bz2", bz2.compress),
    "xz": (".xz", lzma.compress),
    "zstd": (".zst", zstandard.ZstdCompressor().compress),
    "lz4": (".lz4", lz4),
}
"""For each compression, its ending and what compresses."""
