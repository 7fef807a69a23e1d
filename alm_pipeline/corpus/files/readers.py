"""The reader of each file format, and the rows of all files of a source."""

from collections import Counter
from collections.abc import Callable, Iterator

from alm_pipeline.config import FileFormat
from alm_pipeline.corpus.files.arrow_rows import read_arrow, read_parquet
from alm_pipeline.corpus.files.compression import opened
from alm_pipeline.corpus.files.csv_rows import read_csv, read_tsv
from alm_pipeline.corpus.files.errors import naming_file, require_columns
from alm_pipeline.corpus.files.json_rows import read_json, read_jsonl
from alm_pipeline.corpus.files.listing import CorpusFile, FileListing
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from alm_pipeline.corpus.files.versions import HashedFiles

Reader = Callable[[CorpusFile, Columns, Counter[str]], Iterator[tuple[str, SourceRow]]]


def read_text(file: CorpusFile, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the whole file as one row."""
    require_columns(f"{file.url}, a text file,", columns.required, ["text"])
    with naming_file(file), opened(file) as stream:
        data = stream.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        dropped["invalid_utf8"] += 1
        return
    if "\0" in text:  # UTF-16, or no text
        dropped["not_text"] += 1
    else:
        yield file.name, {"text": text}


READERS: dict[FileFormat, Reader] = {
    "parquet": read_parquet,
    "arrow": read_arrow,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "text": read_text,
}
"""For each file format, the function that yields a file's rows with their ids."""


def read_files(
    listing: FileListing, hashed: HashedFiles, columns: Columns, dropped: Counter[str]
) -> Iterator[tuple[str, SourceRow]]:
    """Yield the rows of all files with their ids: '<name>' for a text file, '<name>:<row>' for rows of other files.

    Row numbers begin at 0 and include dropped rows; blank lines are not rows. A row has at least those of `columns`
    that the file has for it. Files that are left out are counted, too.
    """
    dropped.update(listing.left_out)
    for file in listing.files:
        with hashed.reading(file):
            yield from READERS[file.format](file, columns, dropped)
