"""Rows of Parquet and Arrow files, as Python values.

A struct has every key that any row of the file has; those that Arrow filled in with nulls are taken off, at every
depth. Times are read in microseconds, as Python counts them, whatever packages are installed.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from alm_pipeline.corpus.files.compression import compression_of, refuse_lfs_pointer
from alm_pipeline.corpus.files.errors import naming_file, require_columns
from alm_pipeline.corpus.files.listing import CorpusFile
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from storage.errors import UserError

# Arrow's unit of reading; small, since a single row can hold megabytes of text
_BATCH_ROWS = 256
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_FILE_MAGIC = re.compile(rb"ARROW1")


def read_parquet(file: CorpusFile, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the rows of a Parquet file."""
    with naming_file(file), file.fs.open(file.path, "rb") as stream:
        _check_head(file, stream)
        yield from _numbered_rows(file, _parquet_batches(file, stream, columns), dropped)


def read_arrow(file: CorpusFile, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the rows of an Arrow file (also Feather) or stream, as the content is."""
    with naming_file(file), file.fs.open(file.path, "rb") as stream:
        head = _check_head(file, stream)
        batches = _file_batches if _FILE_MAGIC.match(head) else _stream_batches
        yield from _numbered_rows(file, batches(file, stream, columns), dropped)


def _check_head(file: CorpusFile, stream: IO[bytes]) -> bytes:
    head = stream.read(64)
    stream.seek(0)
    refuse_lfs_pointer(file, head)
    if name := compression_of(head):
        raise UserError(
            f"{file.url} is compressed as a whole ({name}), which {file.format} can't be read in: unpack it"
        )
    return head


def _parquet_batches(file: CorpusFile, stream: IO[bytes], columns: Columns) -> Iterator[Any]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(stream, page_checksum_verification=True)
    names = _checked_columns(file, parquet.schema_arrow.names, columns)
    yield from parquet.iter_batches(batch_size=_BATCH_ROWS, columns=names)


def _file_batches(file: CorpusFile, stream: IO[bytes], columns: Columns) -> Iterator[Any]:
    import pyarrow as pa

    with pa.ipc.open_file(stream) as reader:
        names = _checked_columns(file, reader.schema.names, columns)
        for index in range(reader.num_record_batches):
            yield from _slices(reader.get_batch(index).select(names))


def _stream_batches(file: CorpusFile, stream: IO[bytes], columns: Columns) -> Iterator[Any]:
    import pyarrow as pa

    # a stream that was cut off between two batches is read without an error
    stream.seek(max(0, stream.seek(0, 2) - len(_END_OF_STREAM)))
    if stream.read() != _END_OF_STREAM:
        raise UserError(f"{file.url} is not an Arrow file or a whole stream; fetch it again, or exclude it")
    stream.seek(0)
    with pa.ipc.open_stream(stream) as reader:
        names = _checked_columns(file, reader.schema.names, columns)
        for batch in reader:
            yield from _slices(batch.select(names))


def _slices(batch: Any) -> Iterator[Any]:
    for column in batch.columns:
        _validate(column)
    return (batch.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))


def _validate(column: Any) -> None:
    """Raise ValueError if a column's offsets or indices point outside of its data: reading it would end the process.

    Text that is not UTF-8 passes, since it is counted by row.
    """
    with suppress(NotImplementedError):  # text in types that have no such view has to be UTF-8
        column = column.view(_without_text(column.type))
    column.validate(full=True)


def _without_text(kind: Any) -> Any:
    """Return an Arrow type with bytes in place of text, at every depth."""
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.binary() if pa.types.is_string(kind) else pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_text(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = kind.value_field.with_type(_without_text(kind.value_type))
        return pa.list_(values) if pa.types.is_list(kind) else pa.large_list(values)
    return kind


def _checked_columns(file: CorpusFile, names: list[str], columns: Columns) -> list[str]:
    """Return the columns of a file that are read. Raises UserError if one is missing, or there twice."""
    require_columns(file.url, columns.required, names)
    read = columns.among(names)
    if twice := [column for column in read if names.count(column) > 1]:
        raise UserError(f"{file.url} has the column {twice[0]!r} twice; rename one of them")
    return read


def _numbered_rows(file: CorpusFile, batches: Iterator[Any], dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    number = 0
    for batch in batches:
        for row in rows_of(batch):
            if isinstance(row, str):
                dropped[row] += 1
            else:
                yield f"{file.name}:{number}", row
            number += 1


def rows_of(batch: Any) -> list[SourceRow | str]:
    """Return a batch's rows without the nulls that Arrow filled in; a row that Python cannot hold as a reason."""
    try:
        columns = [_values(column) for column in batch.columns]
    except UnicodeDecodeError:
        reason = "invalid_utf8"
    except (ValueError, OverflowError):  # a year over 9999, a struct with a key twice
        reason = "value_out_of_range"
    else:
        return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]
    if batch.num_rows == 1:
        return [reason]
    return [row for index in range(batch.num_rows) for row in rows_of(batch.slice(index, 1))]


def _values(column: Any) -> list[Any]:
    kind = _in_microseconds(column.type)
    values = (column if kind == column.type else column.cast(kind, safe=False)).to_pylist()
    return [without_filled_nulls(value, kind) for value in values] if kind.num_fields else values


def without_filled_nulls(value: Any, kind: Any) -> Any:
    """Return a value of an Arrow type without its structs' null keys; a map becomes a dict."""
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {f.name: without_filled_nulls(value[f.name], f.type) for f in kind if value[f.name] is not None}
    if pa.types.is_map(kind):
        return {key: without_filled_nulls(item, kind.item_type) for key, item in value}
    if _is_list(kind):
        return [without_filled_nulls(item, kind.value_type) for item in value]
    return value


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)
    return isinstance(kind, lists)


def _in_microseconds(kind: Any) -> Any:
    """Return a type with its nanoseconds, which Python's times lack, as microseconds."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if kind == pa.time64("ns") else kind
