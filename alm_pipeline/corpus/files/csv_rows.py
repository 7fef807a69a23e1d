"""Rows of CSV and TSV files with a header; every value is text.

Python's reader takes fields of any size, names the row, and refuses an open quote, where Arrow's has a limit per block.
A row with another number of fields than the header is an error: what is in the wrong column cannot be known.
"""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from alm_pipeline.corpus.files.compression import opened
from alm_pipeline.corpus.files.errors import naming_file, require_columns
from alm_pipeline.corpus.files.listing import CorpusFile
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from storage.errors import UserError

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def read_csv(file: CorpusFile, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the rows of a file whose fields are separated by commas."""
    return _read(file, columns, ",")


def read_tsv(file: CorpusFile, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the rows of a file whose fields are separated by tabs."""
    return _read(file, columns, "\t")


def _read(file: CorpusFile, columns: Columns, separator: str) -> Iterator[tuple[str, SourceRow]]:
    csv.field_size_limit(sys.maxsize)  # of the process; the default is 128 KiB
    with naming_file(file), opened(file) as stream:
        # bytes that are not UTF-8 become lone surrogates, for which the row is counted
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = _numbered(file, csv.reader(text, delimiter=separator, strict=True))
        header = next(rows, (0, []))[1]
        _check_header(file, header, columns, separator)
        for number, (line, fields) in enumerate(rows):
            if len(fields) != len(header):
                raise UserError(
                    f"{file.url}, row {number} (ends in line {line}), has {len(fields)} fields and the header "
                    f"{len(header)}; put quotes around fields that contain {_SEPARATORS[separator]} or line ends"
                )
            yield f"{file.name}:{number}", dict(zip(header, fields, strict=True))


def _numbered(file: CorpusFile, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, with the line that each ends in."""
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(
            f"{file.url}, in the row that ends in line {reader.line_num}: {error}; a quote within a quoted field is "
            "written twice, and a quoted field ends with a quote"
        ) from error


def _check_header(file: CorpusFile, header: list[str], columns: Columns, separator: str) -> None:
    if not header:
        raise UserError(f"{file.url} is empty: it needs a header with the names of its columns; fix or exclude it")
    if twice := [column for column in columns.among(header) if header.count(column) > 1]:
        raise UserError(f"{file.url} has the column {twice[0]!r} twice; rename one of them")
    others = [sign for sign in _SEPARATORS if sign != separator and any(sign in name for name in header)]
    if others and (not set(columns.required) <= set(header) or (columns.every and len(header) == 1)):
        raise UserError(
            f"{file.url}, read as {file.format}: its header {separator.join(header)[:100]!r} has no column "
            f"{_missing(header, columns)!r}; its fields seem to be separated by {_SEPARATORS[others[0]]} and not by "
            f"{_SEPARATORS[separator]}: {_fix(others[0])}"
        )
    require_columns(file.url, columns.required, header)


def _missing(header: list[str], columns: Columns) -> str:
    return next((column for column in columns.required if column not in header), "text")


def _fix(separator: str) -> str:
    if separator in ",\t":
        return f"set corpus.source.format to {'csv' if separator == ',' else 'tsv'}"
    return "write it with commas, or as JSONL"
