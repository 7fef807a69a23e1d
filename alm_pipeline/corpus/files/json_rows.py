"""Rows of JSON: one object per line, or one array of objects, or objects one after another.

Each row is read on its own, whatever the rows before it had. A line that is not an object is counted, unless none is
one: such a file has another format. In an array damage is an error, since nothing says where the next row begins.
"""

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from alm_pipeline.corpus.files.compression import opened
from alm_pipeline.corpus.files.errors import naming_file
from alm_pipeline.corpus.files.listing import CorpusFile
from alm_pipeline.corpus.files.rows import Columns, ColumnsSeen, SourceRow
from storage.errors import UserError

_ARRAY_OF_OBJECTS = re.compile(rb"\s*\[\s*(\{|$)")
_SPACE = re.compile(r"\s*")
_READ_CHARACTERS = 2**16


class _Decoder:
    """Decodes JSON, and notes whether an object had a key twice: which of its values is right is unknown."""

    def __init__(self) -> None:
        self.repeated = False
        self._values, self._objects = 0, 0
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        self.repeated |= len(row) != len(pairs)
        return row

    def decode(self, text: str) -> Any:
        """Return the only value of a text. Raises ValueError, or RecursionError if it is nested too deeply."""
        self.repeated = False
        return self._decoder.decode(text)

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """Return the value at a place and the place after it. Raises as `decode` does."""
        self.repeated = False
        return self._decoder.raw_decode(text, start)

    def row(self, value: Any, dropped: Counter[str]) -> SourceRow | None:
        """Return the value that was just decoded, if it is a row; else count why it is not."""
        self._values += 1
        self._objects += isinstance(value, dict)
        if not isinstance(value, dict):
            dropped["invalid_json"] += 1
        elif self.repeated:
            dropped["repeated_key"] += 1
        else:
            return value
        return None

    def require_objects(self, file: CorpusFile) -> None:
        """Raise UserError if there were values, and none was an object."""
        if self._values and not self._objects:
            fix = "set corpus.source.format to json if objects go over several lines; otherwise "
            raise UserError(
                f"{file.url}, read as {file.format}, has no JSON object in any of its {self._values} rows; "
                f"{fix if file.format == 'jsonl' else ''}fix or fetch the file again, or exclude it with "
                "corpus.source.exclude"
            )


def read_jsonl(file: CorpusFile, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the object of each line that is not blank. Raises UserError if the file is one array."""
    seen, decoder = ColumnsSeen(file, columns.required), _Decoder()
    with naming_file(file), opened(file) as stream:
        for number, line in enumerate(_lines(stream)):
            if number == 0 and _ARRAY_OF_OBJECTS.match(line):
                raise UserError(
                    f"{file.url} contains one JSON array instead of one object per line; rename it to .json, set "
                    "corpus.source.format to json, or rewrite it with: jq -c '.[]' FILE > FILE.jsonl"
                )
            row = _parse(decoder, line, dropped)
            if row is not None:
                seen.add(row)
                yield f"{file.name}:{number}", row
        decoder.require_objects(file)
        seen.require()


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    first = stream.readline().removeprefix(codecs.BOM_UTF8)
    if first.strip():
        yield first
    for line in stream:
        if line.strip():
            yield line


def _parse(decoder: _Decoder, line: bytes, dropped: Counter[str]) -> SourceRow | None:
    try:
        value = decoder.decode(line.decode())
    except UnicodeDecodeError:
        dropped["invalid_utf8"] += 1
        return None
    except json.JSONDecodeError:
        return decoder.row(None, dropped)
    except (ValueError, RecursionError):  # a number that is too long, nesting that is too deep
        dropped["invalid_json"] += 1
        return None
    return decoder.row(value, dropped)


def read_json(file: CorpusFile, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the objects of an array, of lines, or of a text of objects one after another, as the content is."""
    if _has_lines(file):
        yield from read_jsonl(file, columns, dropped)
        return
    seen, decoder = ColumnsSeen(file, columns.required), _Decoder()
    # bytes that are not UTF-8 become lone surrogates, for which the row is counted
    with naming_file(file), opened(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
        for number, value in enumerate(_Values(file, text, decoder)):
            row = decoder.row(value, dropped)
            if row is not None:
                seen.add(row)
                yield f"{file.name}:{number}", row
        decoder.require_objects(file)
        seen.require()


def _has_lines(file: CorpusFile) -> bool:
    """Whether the first line that is not blank is a whole value, and not the array that the file is."""
    with naming_file(file), opened(file) as stream:
        line = next(_lines(stream), b"{}")
    if _ARRAY_OF_OBJECTS.match(line):
        return False
    try:
        value = json.loads(line.decode().removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return False
    return not isinstance(value, list)


class _Values:
    """The values of an array, or one after another, decoded as they are read; memory holds about one at a time."""

    def __init__(self, file: CorpusFile, text: IO[str], decoder: _Decoder) -> None:
        self._file, self._text, self._decoder = file, text, decoder
        self._buffer, self._at, self._row = "", 0, 0

    def __iter__(self) -> Iterator[Any]:
        in_array = self._next_character() == "["
        self._at += in_array
        while (character := self._next_character()) and character != "]":
            yield self._value()
            self._row += 1
            separator = self._next_character()
            if in_array and separator not in (",", "]"):
                raise self._damage("ends within its array" if not separator else f"has {separator!r} between rows")
            self._at += in_array and separator == ","
        self._require_end(in_array, character)

    def _require_end(self, in_array: bool, character: str) -> None:
        if in_array and character != "]":
            raise self._damage("ends within its array")
        self._at += in_array
        if self._next_character():
            raise self._damage("has more after its array" if in_array else "has a ']' between rows")

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.decode_at(self._buffer, self._at)
            except RecursionError as error:
                raise self._damage("is nested too deeply") from error
            except ValueError as error:
                if not self._read():
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise self._damage(f"is not valid JSON: {reason}") from error
            else:
                # a number may go on
                if end < len(self._buffer) or not self._read():
                    self._at = end
                    return value

    def _next_character(self) -> str:
        """Skip white space; return the next character without taking it, '' at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._buffer) or not self._read():
                return self._buffer[self._at : self._at + 1]

    def _read(self) -> bool:
        """Read as much again as is waiting, so that a long value is not decoded over and over."""
        waiting = self._buffer[self._at :]
        more = self._text.read(max(_READ_CHARACTERS, len(waiting)))
        self._buffer, self._at = waiting + more, 0
        return bool(more)

    def _damage(self, what: str) -> UserError:
        return UserError(
            f"{self._file.url}, row {self._row}, {what}; fix or fetch the file again, or exclude it with "
            "corpus.source.exclude"
        )
