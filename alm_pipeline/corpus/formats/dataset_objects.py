"""Datasets that are objects in Python: their rows are written to a file, which is then the corpus's source.

So every process reads the same rows, whatever made them: an IterableDataset is read once. The file is JSONL in this
machine's cache, named by its content: the same rows are the same examples, whatever their object's fingerprint.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from uuid import UUID

from alm_pipeline.config import CorpusConfig, FilesSource
from alm_pipeline.corpus.files.arrow_rows import rows_of
from alm_pipeline.corpus.files.rows import SourceRow, without_nulls
from alm_pipeline.runtime.progress import track
from storage.errors import UserError, user_error
from storage.folders import cache_folder

FOLDER = "corpora"
"""Where in this machine's cache the files are; they may be deleted, and are written again."""
_FILE = "rows.jsonl"
_BATCH_ROWS = 1000
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def corpus_of_dataset(dataset: Any, corpus: CorpusConfig) -> CorpusConfig:
    """Return the corpus with the rows of a `datasets.Dataset` or `IterableDataset` as its source.

    Raises UserError for any other object, and if the rows can't be read.
    """
    _require_dataset(dataset)
    file = _written(dataset)
    return corpus.model_copy(update={"name": _name(dataset), "source": FilesSource(urls=(str(file),))})


def _require_dataset(dataset: Any) -> None:
    # an object of `datasets` is there only if it was imported
    datasets = sys.modules.get("datasets")
    if datasets and isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        return
    if datasets and isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        names = list(dataset)
        raise UserError(f"corpus has the splits {', '.join(map(repr, names))}; pass one, such as corpus[{names[0]!r}]")
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    raise UserError(
        f"corpus is a {kind}, and must be a datasets.Dataset or IterableDataset: make one with "
        "datasets.Dataset.from_list(rows) or .from_pandas(frame), or name files in corpus.source"
    )


def _name(dataset: Any) -> str:
    name = getattr(dataset.info, "dataset_name", None) or "dataset"
    return _NAME.sub("-", name).strip("-._") or "dataset"


def _written(dataset: Any) -> Path:
    """Return the file with the dataset's rows, in a folder that is named by its content."""
    folder = cache_folder().absolute() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, prefix=".", delete=False) as target:
        try:
            content = _write_rows(dataset, target)
            target.close()
            return _in_place(Path(target.name), folder / content[:32] / _FILE, content)
        finally:
            Path(target.name).unlink(missing_ok=True)


def _write_rows(dataset: Any, target: Any) -> str:
    """Write a line for each row; return the SHA-256 of all lines."""
    digest = hashlib.sha256()
    error = user_error("cannot read the dataset that is the corpus", "check that it can be iterated over")
    with error, track("read corpus", getattr(dataset, "num_rows", None), "rows") as advance:
        for row in _rows(dataset):
            line = _line(row)
            digest.update(line)
            target.write(line)
            advance(1)
    return digest.hexdigest()


def _in_place(written: Path, file: Path, content: str) -> Path:
    """Move a file to its place, unless the same is there, which another run may be reading."""
    if file.is_file():
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == content:
                return file
    file.parent.mkdir(exist_ok=True)
    return written.replace(file)


def _rows(dataset: Any) -> Iterator[SourceRow | None]:
    """Yield the rows; None for one that Python can't hold."""
    if dataset.features is None or (getattr(dataset, "format", None) or {}).get("type") == "custom":
        for row in dataset:  # the rows of a generator or a transform, as they are
            yield {column: without_nulls(value) for column, value in row.items()}
        return
    # as Arrow, so that images and sounds are not decoded
    for batch in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        for held in rows_of(batch):
            yield None if isinstance(held, str) else held


def _line(row: SourceRow | None) -> bytes:
    """Return a line of JSON; `null`, which the corpus counts as a row that is not one, for what JSON can't hold."""
    try:
        text = json.dumps(row, default=_plain, skipkeys=True)
    except (ValueError, RecursionError):
        text = "null"
    return f"{text}\n".encode()


def _plain(value: Any) -> Any:
    """Return a value that JSON has no form of as one that it has; None for pictures, sounds, …"""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta | UUID):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value.tolist() if hasattr(value, "tolist") else None
