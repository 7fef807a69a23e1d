"""A sample of a corpus, spread over its files and bounded in time, and what it says of the whole corpus."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alm_pipeline.config import CorpusConfig, FilesSource, GeneratedSource, HubSource
from alm_pipeline.corpus.examples import Example, is_sampled, iter_examples
from alm_pipeline.corpus.files.listing import CorpusFile, list_files
from alm_pipeline.corpus.files.readers import READERS
from alm_pipeline.corpus.files.rows import Columns
from alm_pipeline.corpus.files.versions import HashedFiles
from alm_pipeline.corpus.sources import OpenSource, open_source
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.planning.plan import Amount
from storage.urls import is_local

SECONDS = 3.0
"""how long a sample is read for, after the files are listed"""
_LEAST_BYTES = 2**18
"""of text that are read however slow that is, for at most `_MOST_SECONDS`"""
_MOST_SECONDS = 15.0
_KEPT_BYTES = 4 * 2**20
_READ_BYTES = 2**20
"""what readers take of a file at a time"""
_SIZED_FILES = 1000
"""the most files of a server that are asked for their sizes"""


@dataclass
class CorpusEstimate:
    """Examples from all over a corpus, and what the whole corpus is estimated to hold."""

    examples: list[Example]
    count: Amount | None
    """of the corpus's examples; None if nothing says how large the corpus is"""
    held_out: Amount | None
    text_bytes: Amount | None
    read_bytes_per_second: float
    """of text, while the sample was read"""


@dataclass
class _Totals:
    count: int = 0
    held_out: int = 0
    text_bytes: int = 0

    def add(self, example: Example) -> None:
        self.count += 1
        self.held_out += example.split == "held_out"
        self.text_bytes += example.text_bytes


@dataclass
class _Reading:
    """What has been read so far, before `sample` and `max_examples` leave anything out."""

    seconds: float
    """how long to read"""
    sample: float
    """the corpus's"""
    limit: TokenLimit | None
    examples: list[Example] = field(default_factory=list)
    """evenly spaced ones: as many as fit"""
    count: int = 0
    text_bytes: int = 0
    sampled: _Totals = field(default_factory=_Totals)
    """of the examples that the corpus's sample has"""
    _kept: int = 0
    _stride: int = 1
    _started: float = 0.0

    def start(self) -> None:
        """Start the time, once all that comes before the first example is done."""
        self._started = time.monotonic()

    @property
    def is_over(self) -> bool:
        passed = time.monotonic() - self._started
        return passed >= self.seconds and (self.text_bytes >= _LEAST_BYTES or passed >= _MOST_SECONDS)

    @property
    def bytes_per_second(self) -> float:
        return self.text_bytes / max(time.monotonic() - self._started, 1e-6)

    def add(self, example: Example) -> None:
        if self.count % self._stride == 0:
            self.examples.append(example)
            self._kept += example.text_bytes
        self.count += 1
        self.text_bytes += example.text_bytes
        if is_sampled(example.id, self.sample):
            self.sampled.add(example)
        if self._kept > _KEPT_BYTES:
            self.examples, self._stride = self.examples[::2], 2 * self._stride
            self._kept = sum(kept.text_bytes for kept in self.examples)


def estimate_corpus(corpus: CorpusConfig, seconds: float = SECONDS, limit: TokenLimit | None = None) -> CorpusEstimate:
    """Read for about some seconds. `limit` is as for `iter_examples`. Raises UserError as reading the corpus does."""
    reading = _Reading(seconds, corpus.sample, limit)
    whole = corpus.model_copy(update={"sample": 1.0, "max_examples": None})
    match corpus.source:
        case FilesSource():
            share = _read_files(whole, corpus.source, reading)
        case _:
            share = _read_rows(whole, corpus.source, reading)
    return _extrapolated(corpus, reading, share, reading.bytes_per_second)


def _extrapolated(corpus: CorpusConfig, reading: _Reading, share: float | None, speed: float) -> CorpusEstimate:
    """`share` is the part of the corpus that was read; None if that is unknown."""
    if share is None or not reading.count:
        return CorpusEstimate(reading.examples, None, None, None, speed)
    # what the corpus's sample has of that part is known, and of the rest it has its share
    unread = (1 / share - 1) * corpus.sample
    count = reading.sampled.count + reading.count * unread
    text_bytes = reading.sampled.text_bytes + reading.text_bytes * unread
    held_out = reading.sampled.held_out + reading.count * unread * corpus.held_out
    limit = corpus.max_examples
    kept = 1.0 if limit is None else min(1.0, limit / max(1.0, count))
    # a limit that the corpus surely reaches is the number
    is_limit = limit is not None and kept < 1 / 1.2
    return CorpusEstimate(
        reading.examples,
        Amount(value=round(count * kept), exact=is_limit),
        Amount(value=round(held_out * kept)),
        Amount(value=round(text_bytes * kept)),
        speed,
    )


def _read_rows(corpus: CorpusConfig, source: Any, reading: _Reading) -> float | None:
    """Read rows from the beginning; return the share of the rows that were read."""
    if isinstance(source, HubSource):
        source = source.model_copy(update={"streaming": True})  # otherwise all of it would be fetched first
    counter = _RowCounter(open_source(source))
    reading.start()
    if _read_until(corpus, counter.source(), reading, 0.0):
        return 1.0
    rows = source.size if isinstance(source, GeneratedSource) else _hub_rows(source)
    return min(1.0, counter.rows / rows) if rows else None


def _hub_rows(source: HubSource) -> int | None:
    """Return the rows of a split as `datasets` states them; None if it does not."""
    try:
        import datasets

        builder = datasets.load_dataset_builder(source.name, source.subset, revision=source.revision)
        split = (builder.info.splits or {}).get(source.split)
    except Exception:  # of a folder without metadata, a hub that does not answer, …: an estimate is not worth an error
        return None
    return split.num_examples if split else None


def _read_until(corpus: CorpusConfig, source: OpenSource, reading: _Reading, time_to_leave: float) -> bool:
    """Read examples until the sample is over, or the time has come to leave this source; return whether it ended."""
    for example in iter_examples(corpus, Counter(), source, reading.limit):
        reading.add(example)
        if time.monotonic() >= time_to_leave and (time_to_leave or reading.is_over):
            return False
    return True


class _RowCounter:
    """A source whose rows are counted as they are read."""

    def __init__(self, source: OpenSource) -> None:
        self._source, self.rows = source, 0

    def source(self) -> OpenSource:
        return OpenSource(self._source.kind, self._source.content, self._read, HashedFiles(()))

    def _read(self, columns: Columns, dropped: Counter[str]) -> Iterator[Any]:
        for row in self._source.rows(columns, dropped):
            self.rows += 1
            yield row


def _read_files(corpus: CorpusConfig, source: FilesSource, reading: _Reading) -> float | None:
    """Read files from all over the list, each from its beginning; return the share of all bytes that was read."""
    files = list_files(source).files
    seconds_each = max(0.1, reading.seconds / min(len(files), 8))
    read, is_whole = 0.0, True
    reading.start()
    for index in _spread(len(files)):
        if reading.count and reading.is_over:
            is_whole = False
            break
        file = _OpenedFile(files[index])
        # of a file that readers take at once nothing says how far it was read
        is_small = file.size is not None and file.size <= _READ_BYTES
        if _read_until(corpus, file.source(), reading, math.inf if is_small else time.monotonic() + seconds_each):
            read += file.size or 0
        elif file.size is None:
            return None
        else:
            read, is_whole = read + file.size * file.share_read(), False
    if is_whole:
        return 1.0
    whole = _whole_size(files)
    return min(1.0, read / whole) if whole and read else None


def _spread(count: int) -> Iterator[int]:
    """Yield the numbers below `count`, each once, so that the first of them are evenly spaced, however many are taken.

    They are the van der Corput sequence: 0, 1/2, 1/4, 3/4, … of the count.
    """
    bits = max(1, (count - 1).bit_length())
    for step in range(2**bits):
        index = int(f"{step:0{bits}b}"[::-1], 2)
        if index < count:
            yield index


def _whole_size(files: Sequence[CorpusFile]) -> float | None:
    """Return the bytes of all files, of very many files on a server an estimate; None if a size is unknown."""
    step = max(1, len(files) // _SIZED_FILES) if not is_local(files[0].fs) else 1
    sizes = [_size(file) for file in files[::step]]
    known = [size for size in sizes if size is not None]
    return sum(known) * len(files) / len(known) if len(known) == len(sizes) else None


def _size(file: CorpusFile) -> int | None:
    try:
        size = file.fs.info(file.path).get("size")
    except OSError:
        return None
    return int(size) if size is not None else None


class _OpenedFile:
    """A file that is read from its beginning, and how far it has been read."""

    def __init__(self, file: CorpusFile) -> None:
        self._file, self.size = file, _size(file)
        self._stream: Any = None
        self._rows = 0
        self._place, self._bytes_per_row = 0, 0.0
        self._first_taken: tuple[int, int] | None = None
        """the place and the row at which readers took more for the first time"""

    def source(self) -> OpenSource:
        return OpenSource("files", list, self._read, HashedFiles(()))

    def share_read(self) -> float:
        """Return the part that has been read, by rows where the file counts them, else by the place in the file."""
        if all_rows := _row_count(self._file):
            return min(1.0, self._rows / all_rows)
        read = self._bytes_per_row * self._rows or self._place / 2
        return min(1.0, read / max(1, self.size or 0))

    def _read(self, columns: Columns, dropped: Counter[str]) -> Iterator[Any]:
        for row in READERS[self._file.format](replace(self._file, fs=self), columns, dropped):
            self._note_place()
            self._rows += 1
            yield row

    def _note_place(self) -> None:
        # readers take a mebibyte at a time: when they take the next one, the rows so far fill all before it, but for
        # what a decompressor has ahead, which is as much each time
        place = self._stream.tell() if not self._stream.closed else self._place
        if place != self._place and self._rows:
            first_place, first_row = self._first_taken or (0, 0)
            self._bytes_per_row = (self._place - first_place) / (self._rows - first_row)
            self._first_taken = self._first_taken or (self._place, self._rows)
        self._place = place

    def open(self, path: str, mode: str) -> Any:
        self._stream = self._file.fs.open(path, mode)
        return self._stream

    def __getattr__(self, name: str) -> Any:
        """Be the file's file system in all else."""
        return getattr(self._file.fs, name)


def _row_count(file: CorpusFile) -> int | None:
    """Return the number of rows that a file states; None for formats that state none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.fs.open(file.path, "rb") as stream:
        if file.format == "parquet":
            return int(pq.read_metadata(stream).num_rows)
        if file.format != "arrow":
            return None
        try:
            reader = pa.ipc.open_file(stream)
        except pa.ArrowInvalid:  # a stream
            return None
        batches = reader.num_record_batches
        # all batches but the last one are of the same size
        return int(reader.get_batch(0).num_rows * (batches - 1) + reader.get_batch(batches - 1).num_rows)
