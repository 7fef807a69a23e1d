"""A file's bytes, decompressed as its content says, and refused where they are of another kind than its name says."""

import bz2
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from alm_pipeline.corpus.files.kinds import kind_of, says_compressed
from alm_pipeline.corpus.files.listing import CorpusFile
from storage.errors import UserError

_READ_BYTES = 2**20
_HEAD_BYTES = 512


def _open_gzip(stored: IO[bytes]) -> Any:
    return gzip.GzipFile(fileobj=stored, mode="rb")


def _open_by_arrow(codec: str) -> Callable[[IO[bytes]], Any]:
    """Use Arrow's reader: fsspec's of zstd stops after the first frame and accepts a truncated file."""

    def open_stream(stored: IO[bytes]) -> Any:
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), codec)

    return open_stream


class _Streams(io.RawIOBase):
    """The content of all streams of a bz2 or xz file, where Python's own readers take later damage for the end.

    `new_decompressor` makes the decompressor of one stream.
    """

    def __init__(self, new_decompressor: Callable[[], Any], stored: IO[bytes]) -> None:
        self._new_decompressor, self._stored = new_decompressor, stored
        self._decompressor, self._rest = new_decompressor(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decompressor.eof or self._next_stream():
            if data := self._decompressor.decompress(self._input(), len(buffer)):
                buffer[: len(data)] = data
                return len(data)
        return 0

    def _input(self) -> bytes:
        """Return compressed bytes if any are needed. Raises EOFError if the file ends within a stream."""
        if not self._decompressor.needs_input:
            return b""
        data, self._rest = self._rest or self._stored.read(_READ_BYTES), b""
        if not data:
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        return data

    def _next_stream(self) -> bool:
        rest = self._decompressor.unused_data.lstrip(b"\0")  # streams may be padded
        while not rest and (more := self._stored.read(_READ_BYTES)):
            rest = more.lstrip(b"\0")
        if rest:
            self._decompressor, self._rest = self._new_decompressor(), rest
        return bool(rest)


COMPRESSIONS: dict[str, tuple[re.Pattern[bytes], Callable[[IO[bytes]], Any]]] = {
    "gzip": (re.compile(rb"\x1f\x8b\x08"), _open_gzip),
    "bz2": (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), partial(_Streams, bz2.BZ2Decompressor)),
    "xz": (re.compile(rb"\xfd7zXZ\0"), partial(_Streams, lzma.LZMADecompressor)),
    "zstd": (re.compile(rb"(?s:\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)"), _open_by_arrow("zstd")),
    "lz4": (re.compile(rb"\x04\x22\x4d\x18"), _open_by_arrow("lz4")),
}
"""How the content of each compression begins, and what decompresses it in constant memory."""

_UTF_16 = re.compile(rb"\xff\xfe|\xfe\xff")
_HTML = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)
_FOREIGN: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer and not the data", "run `git lfs pull` in its folder"),
    (re.compile(rb"(?s:PK\x03\x04|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|.{257}ustar)"), "an archive", "unpack it"),
    (re.compile(rb"PAR[1E]"), "Parquet", "rename it to .parquet"),
    (re.compile(rb"ARROW1|\xff\xff\xff\xff"), "Arrow data", "rename it to .arrow"),
    (re.compile(rb"%PDF-|SQLite format 3\0|\x89HDF|\xd0\xcf\x11\xe0"), "a document or database", "export its texts"),
    (
        re.compile(rb"\x1f\x9d|LZIP|\xff\x06\0\0sNaPpY|\x02\x21\x4c\x18"),
        "of a compression that is not read",
        "use gzip",
    ),
)
"""The first bytes of formats that are not lines of text, with the format's name and the fix."""


@contextmanager
def opened(file: CorpusFile) -> Iterator[IO[bytes]]:
    """Yield the file's bytes, decompressed.

    Raises UserError if its name says that it is compressed and its content is neither that nor text, or if its content
    is of another kind than lines of text. Reading raises OSError, EOFError, … where compressed data is damaged.
    """
    with file.fs.open(file.path, "rb") as stored:
        stream = io.BufferedReader(_FullReads(stored), _READ_BYTES)
        head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        if name := compression_of(head):
            stream = io.BufferedReader(COMPRESSIONS[name][1](stream), _READ_BYTES)
            head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
            if inner := compression_of(head):
                raise UserError(f"{file.url} is compressed twice ({inner} in {name}); decompress it once")
        elif says_compressed(file.plain_path):
            _require_text(file, head)
        _refuse_other_kinds(file, head)
        yield stream


def compression_of(head: bytes) -> str | None:
    """Return the name of the compression that a file's first bytes are of, or None."""
    return next((name for name, (magic, _) in COMPRESSIONS.items() if magic.match(head)), None)


def refuse_lfs_pointer(file: CorpusFile, head: bytes) -> None:
    """Raise UserError if a file's first bytes are those of a pointer that Git LFS left instead of the data."""
    pattern, what, fix = _FOREIGN[0]
    if pattern.match(head):
        raise UserError(f"{file.url} is {what}; {fix}")


def _require_text(file: CorpusFile, head: bytes) -> None:
    """Accept what was decompressed but kept its name, and nothing else."""
    text = head.decode(errors="ignore").encode()
    if not head or b"\0" in head or len(head) - len(text) > 3:
        what = "is empty" if not head else "is not compressed data"
        raise UserError(
            f"{file.url} {what}, though its name says that it is compressed: it is damaged or incomplete; "
            "fetch it again, or exclude it with corpus.source.exclude"
        )


def _refuse_other_kinds(file: CorpusFile, head: bytes) -> None:
    for pattern, what, fix in _FOREIGN:
        if pattern.match(head):
            raise UserError(f"{file.url} is {what}, read as {file.format}; {fix}, or exclude it")
    if "http" in file.fs.protocol and _HTML.match(head) and kind_of(file.plain_path).format:
        raise UserError(
            f"{file.url} is an HTML page, read as {file.format}: the page of a login, an error, or a repository's "
            "viewer; use the URL of the file itself (for GitHub and the Hub, /raw/ instead of /blob/)"
        )
    if file.format != "text" and _UTF_16.match(head):
        raise UserError(
            f"{file.url} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8, or exclude it with corpus.source.exclude"
        )


class _FullReads(io.RawIOBase):
    """A driver's file whose reads return as many bytes as were asked for, except at the end."""

    def __init__(self, stored: IO[bytes]) -> None:
        self._stored = stored

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer) and (data := self._stored.read(len(buffer) - filled)):
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        return filled
