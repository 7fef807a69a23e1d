"""The texts that models and tokenizers are compared on: of corpora by name, and in groups by a column or by script."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from alm_pipeline.config import CorpusConfig, FilesSource
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.config.fields.repeated import place_of
from alm_pipeline.corpus.examples import Example, iter_examples
from alm_pipeline.corpus.files.errors import BY_TEXT_OPTION, columns_set_by
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from alm_pipeline.corpus.formats.layouts import resolve_layout
from alm_pipeline.corpus.sources import OpenSource, open_source
from alm_pipeline.naming.scripts import CLASSES, LETTERS, byte_classes
from storage.errors import UserError
from storage.printed.counts import counts_in_words
from storage.printed.secrets import naming_path

SCRIPT, FILE = "script", "file"
"""what texts are grouped by beside columns: the script of most of their letters, and the file that they are in"""
NO_VALUE = "(none)"
"""the group of texts whose row lacks the column"""
ONLY = "texts"
"""the name of a corpus that is the only one, and was given none"""
_PIECE = re.compile(r"#\d+$")
_ROW = re.compile(r":\d+$")
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)
_NOT_OF_NAMES = re.compile(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ComparedText:
    """A text, and the cell of the table that it counts for."""

    text: str
    corpus: str
    group: str | None
    document: str
    """the corpus's document that it is a piece of: its pieces resemble each other"""


def named_corpora(urls: Sequence[str], text: str, examples: int) -> list[CorpusConfig]:
    """Return corpora of files, of which each is a URL or `NAME=URL`; without a name it is called as its file.

    Raises UserError if two have the same name.
    """
    pairs = [(match[1], match[2]) if (match := _NAMED.fullmatch(url)) else (None, url) for url in urls]
    names = [name or (ONLY if len(urls) == 1 else _file_name(url)) for name, url in pairs]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"corpus: two are called {repeated[0]!r}: name each, as NAME=URL")
    return [texts_at(url, text, examples, name) for name, (_, url) in zip(names, pairs, strict=True)]


def _file_name(url: str) -> str:
    return _NOT_OF_NAMES.sub("-", PurePosixPath(naming_path(url)).stem).strip("-") or ONLY


def texts_at(url: str, text: str, examples: int, name: str = ONLY) -> CorpusConfig:
    """Return the first texts of files as a corpus for comparisons; `text` is a column or a template of columns.

    Raises UserError if the template is wrong.
    """
    try:
        return CorpusConfig(name=name, source=FilesSource(urls=(url,)), layout="text", text=text, max_examples=examples)
    except ValidationError as error:
        raise UserError(f"these texts can't be read:\n{wrong_fields(error, CorpusConfig)}") from error


def open_corpus(corpus: CorpusConfig) -> tuple[CorpusConfig, OpenSource]:
    """Return a corpus of texts with its layout known, and its source. Raises UserError if it has conversations."""
    source = open_source(corpus.source)
    corpus = resolve_layout(corpus, source)
    if corpus.layout not in ("text", "prompt_completion"):
        raise UserError(f"corpus.layout {corpus.layout}: models are compared on texts: set corpus.text instead")
    return corpus, source


def open_corpora(corpora: Sequence[CorpusConfig]) -> list[tuple[CorpusConfig, OpenSource]]:
    """Open each corpus as `open_corpus` does. Raises UserError if a file is in two: its texts would count twice."""
    opened = [open_corpus(corpus) for corpus in corpora]
    corpus_of: dict[str, str] = {}
    for corpus, source in opened:
        for file in source.files.files:
            other = corpus_of.setdefault(place_of(file.url), corpus.name)
            if other != corpus.name:
                raise UserError(f"corpus: {other} and {corpus.name} both have {file.url}: leave one of them out")
    return opened


def require_texts(corpora: Sequence[CorpusConfig]) -> None:
    """Read a text of each corpus. Raises UserError if it can't be read or has none: before models are loaded."""
    for corpus in corpora:
        dropped = Counter[str]()
        if next(read_texts(*open_corpus(corpus), None, dropped), None) is None:
            raise UserError(
                f"{corpus.name}: contains no text to compare models on (left out: {counts_in_words(dropped)})"
            )


def read_texts(
    corpus: CorpusConfig, source: OpenSource, by: str | None, dropped: Counter[str]
) -> Iterator[ComparedText]:
    """Yield a corpus's texts; counts what is left out in `dropped`.

    `by` groups them by a column of the corpus's rows, by `script` or by `file`; None does not. Raises UserError if no
    row has the column, or if it holds lists or mappings.
    """
    groups: dict[str, str] = {}
    seen = set[str]()
    if by not in (None, SCRIPT, FILE):
        source = replace(source, read=_noting(source, str(by), groups, seen))
    # rows are numbered: ids of the corpus's own may repeat, and mean nothing here
    for example in _examples(corpus.model_copy(update={"id": None}), dropped, source):
        if example.text is None:
            continue
        document = example.id if example.id in groups else _PIECE.sub("", example.id)
        match by:
            case "script":
                group: str | None = script_of(example.text)
            case "file":
                group = _ROW.sub("", document)
            case _:
                group = groups.get(document)
        yield ComparedText(example.text, corpus.name, group, document)
    if groups and not seen:  # the rest of a file, of which the first texts are enough, might have it
        raise UserError(f"--by {by}: none of the first {len(groups):,} rows of {corpus.name} has this column")


def _examples(corpus: CorpusConfig, dropped: Counter[str], source: OpenSource) -> Iterator[Example]:
    with columns_set_by(BY_TEXT_OPTION):
        yield from iter_examples(corpus, dropped, source)


def cells(texts: Sequence[ComparedText]) -> Iterator[tuple[str | None, str | None, npt.NDArray[np.int64]]]:
    """Yield the corpus, group and rows of each cell of a table.

    First all texts (None, None), then each corpus if there are several, then each group, as they first come.
    """
    yield None, None, np.arange(len(texts))
    by_corpus = _rows_by([(text.corpus, None) for text in texts])
    for (corpus, _), rows in by_corpus.items() if len(by_corpus) > 1 else ():
        yield corpus, None, rows
    for (corpus, group), rows in _rows_by([(text.corpus, text.group) for text in texts]).items():
        if group is not None:
            yield corpus, group, rows


def _rows_by(keys: Sequence[tuple[str, str | None]]) -> dict[tuple[str, str | None], npt.NDArray[np.int64]]:
    rows: dict[tuple[str, str | None], list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return {key: np.array(found) for key, found in rows.items()}


def document_numbers(texts: Sequence[ComparedText]) -> npt.NDArray[np.int64]:
    """[texts] a number for each text's document, which is what is resampled."""
    names = [f"{len(text.corpus)} {text.corpus} {text.document}" for text in texts]
    numbers: npt.NDArray[np.int64] = np.unique(names, return_inverse=True)[1]
    return numbers


def _noting(source: OpenSource, column: str, groups: dict[str, str], seen: set[str]) -> Any:
    """Return the source's reader, which also notes the column's value of each row, and whether it was in any."""

    def read(columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
        wanted = replace(columns, required=tuple(dict.fromkeys([*columns.required, column])))
        for row_id, row in source.read(wanted, dropped):
            groups[row_id] = _group(row.get(column), column, row_id)
            seen.update({column} & row.keys())
            yield row_id, row

    return read


def _group(value: Any, column: str, row: str) -> str:
    if isinstance(value, list | dict | bytes):
        raise UserError(f"--by {column}: row {row} has a {type(value).__name__}, not a text or number: name another")
    return NO_VALUE if value is None or value == "" else str(value)


def script_of(text: str) -> str:
    """Return the script of most bytes of a text's letters, or `other` for a text without letters of a known script."""
    counts = np.bincount(byte_classes(text.encode()), minlength=len(CLASSES))[: len(LETTERS)]
    return LETTERS[int(counts.argmax())] if counts.any() else CLASSES[-1]
