"""The first rows of a corpus as documents and examples: all of a small corpus, a spread sample of the files of others.

It reads as the stage does, with the same errors, but a file that can't be read does not hide the others.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alm_pipeline.config import CorpusConfig, FilesSource
from alm_pipeline.corpus.examples import Example, iter_examples
from alm_pipeline.corpus.files.listing import CorpusFile
from alm_pipeline.corpus.files.readers import READERS
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from alm_pipeline.corpus.formats.layouts import resolve_layout
from alm_pipeline.corpus.sources import OpenSource, Rows, open_source
from storage.errors import UserError
from storage.urls import is_local

MOST_FILES = 64
"""the files of a larger corpus that are looked into, spread over all of them in the order of their names"""
_ROWS_OF_A_FILE = 20
_SMALL_BYTES = 2 * 2**20
"""a corpus on a disk of at most this size is read as a whole"""
_MOST_EXAMPLES = 5_000
_SECONDS = 3.0
"""after which no further row is read"""


@dataclass
class CorpusSample:
    """What was read of a corpus."""

    files: int
    """the number of the corpus's files; 0 for a source without files"""
    files_read: int = 0
    bytes_of_files: int = 0
    """of all of them; 0 where it is not known"""
    bytes_read: int = 0
    """of the files that were read, where they were read as a whole or in part"""
    is_whole: bool = True
    """whether every row was read"""
    rows: int = 0
    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    problems: list[UserError] = field(default_factory=list)
    """of single files"""

    def in_split(self, split: str) -> list[Example]:
        return [example for example in self.examples if example.split == split]


def read_sample(corpus: CorpusConfig) -> CorpusSample:
    """Read a sample. Raises UserError if the source can't be listed, or for a problem that is not of a single file."""
    source = open_source(corpus.source)
    corpus = resolve_layout(corpus, source)  # of all rows that decide it, and not of the sample
    files = source.files.files if isinstance(corpus.source, FilesSource) else ()
    sample = CorpusSample(len(files), bytes_of_files=_bytes(files))
    reading = _Reading(source, files, sample, time.monotonic() + _SECONDS)
    if not reading.reads_all:  # what is sampled out says nothing about what was not read
        corpus = corpus.model_copy(update={"sample": 1.0, "max_examples": None})
    limited = replace(source, read=reading.rows)
    for example in iter_examples(corpus, sample.dropped, limited):
        sample.examples.append(example)
        if len(sample.examples) >= _MOST_EXAMPLES:
            sample.is_whole = False
            break
    return sample


def _bytes(files: Sequence[CorpusFile]) -> int:
    """Return the size of files on a disk; 0 for others, which would need a request each."""
    try:
        return sum(Path(file.path).stat().st_size for file in files) if all(is_local(file.fs) for file in files) else 0
    except OSError:  # reading it reports the reason
        return 0


class _Reading:
    """Reads the rows of a sample; what keeps a file from being read is noted."""

    def __init__(self, source: OpenSource, files: Sequence[CorpusFile], sample: CorpusSample, deadline: float) -> None:
        self._source, self._sample, self._deadline = source, sample, deadline
        self.reads_all = bool(files) and 0 < sample.bytes_of_files <= _SMALL_BYTES and len(files) <= 4 * MOST_FILES
        self._files = list(files) if self.reads_all else _spread(files, MOST_FILES)

    def rows(self, columns: Columns, dropped: Counter[str]) -> Rows:
        if not self._files:
            yield from self._first(self._source.read(columns, dropped), columns)
            return
        self._sample.is_whole = len(self._files) == self._sample.files
        for file in self._files:
            if time.monotonic() > self._deadline:
                self._sample.is_whole = False
                return
            self._sample.files_read += 1
            self._sample.bytes_read += _bytes([file])
            try:
                yield from self._first(READERS[file.format](file, columns, dropped), columns)
            except UserError as error:
                self._sample.problems.append(error)

    def _first(self, rows: Rows, columns: Columns) -> Iterator[tuple[str, SourceRow]]:
        """Yield the first rows, and further ones until each column was in one: the reader refuses a file without."""
        missing = set(columns.required)
        for number, (name, row) in enumerate(rows, start=1):
            self._sample.rows += 1
            missing.difference_update(row)
            yield name, row
            is_enough = not self.reads_all and number >= _ROWS_OF_A_FILE and not missing
            if is_enough or time.monotonic() > self._deadline:
                self._sample.is_whole = False
                return


def _spread(files: Sequence[CorpusFile], count: int) -> list[CorpusFile]:
    if len(files) <= count:
        return list(files)
    return [files[place * len(files) // count] for place in range(count)]
