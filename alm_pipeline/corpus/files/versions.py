"""Hashes files before they are read, and notices afterward whether one has changed in between.

On a disk a file's version is its size, modification time and inode. A store with checksums (S3, Google, Azure, the Hub,
most web servers) reports the version itself, and files are not read to be hashed. Where a version cannot be trusted the
content is hashed again: a file whose inode changed otherwise (`ctime`: links, permissions, or a time set back), one
that was written in the moment it was hashed (time stamps may count whole seconds), and one without a checksum on a
server.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from alm_pipeline.corpus.files.errors import naming_file
from alm_pipeline.corpus.files.listing import CorpusFile
from storage.errors import UserError
from storage.urls import is_local

# the keys of stored checksums: S3, HTTP and Azure; Google; the Hugging Face Hub
_CHECKSUM_KEYS = ("ETag", "etag", "md5Hash", "blob_id")
_TIME_KEYS = ("LastModified", "Last-Modified", "last_modified", "mtime", "created")
_COARSEST_TIME = 2.0
"""Seconds: the steps in which the coarsest file systems count modification times."""

Content = tuple[str | int, ...]
"""What identifies a file's content: its SHA-256, or its size and the store's checksum."""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """What is known about a file's content without reading it; equal versions differ in content only by mishap."""

    stamp: tuple[str | int, ...]
    inode_changed: int | None = None
    """Nanoseconds since 1970, on a disk."""
    checksum: Content | None = None
    recent: bool = False
    """Whether the file was modified so shortly ago that its time stamp may not show another modification."""

    @property
    def trusted(self) -> bool:
        return self.checksum is not None or (self.inode_changed is not None and not self.recent)


@dataclass(slots=True)
class _Hashed:
    version: FileVersion
    content: Content


_known: dict[tuple[str, FileVersion], Content] = {}
"""What this process has hashed, of files on a disk with a trusted version."""


@dataclass
class HashedFiles:
    """Files and their contents as they were hashed.

    `check` compares those that were read with the files as they are now. What was not hashed is not compared.
    """

    files: tuple[CorpusFile, ...]
    _hashed: dict[CorpusFile, _Hashed] = field(default_factory=dict)
    _open: tuple[CorpusFile, ...] = ()
    _finished: list[CorpusFile] = field(default_factory=list)

    def content(self, file: CorpusFile) -> Content:
        """Return what identifies a file's content, hashed once.

        Raises UserError if it cannot be read, or changes meanwhile.
        """
        if file not in self._hashed:
            self._hashed[file] = _hash(file)
        return self._hashed[file].content

    @contextmanager
    def reading(self, *files: CorpusFile) -> Iterator[None]:
        """Note that these files are read inside; failing to read one that has changed is reported as the change."""
        self._open = files
        try:
            yield
        except UserError:
            for file in files:
                self._verify(file)
            raise
        self._open = ()
        self._finished.extend(files)

    def check(self, *, final: bool = False) -> None:
        """Raise UserError, naming the file, if one that was read since the last check is not what was hashed.

        A file that is still being read is hashed again, if it must be, once it has been read, or by the final check.
        """
        for file in (*self._finished, *(self._open if final else ())):
            self._verify(file)
        self._finished.clear()
        for file in self._open:
            if hashed := self._hashed.get(file):
                _unchanged_version(file, hashed)

    def _verify(self, file: CorpusFile) -> None:
        hashed = self._hashed.get(file)
        if hashed is None:
            return
        now = _unchanged_version(file, hashed)
        if now.trusted and now.inode_changed == hashed.version.inode_changed and not hashed.version.recent:
            return
        if _content(file, now) != hashed.content:
            raise _changed(file)
        # what was recent is not any more, unless it was changed again
        self._hashed[file] = replace(hashed, version=now)


def _unchanged_version(file: CorpusFile, hashed: _Hashed) -> FileVersion:
    """Return a file's version now. Raises UserError if it shows that the content is not what was hashed."""
    try:
        now = _version(file)
    except UserError as error:
        raise UserError(
            f"{file.url} was there when its content was hashed, and is not any more; put it back, and run the same "
            "command again"
        ) from error
    if now.stamp != hashed.version.stamp:
        raise _changed(file)
    return now


def _changed(file: CorpusFile) -> UserError:
    return UserError(
        f"{file.url} has changed since its content was hashed, so that what was read would be stored under a wrong "
        "name; wait until nothing writes to it, and run the same command again"
    )


def _hash(file: CorpusFile) -> _Hashed:
    version = _version(file)
    key = file.path, version
    if is_local(file.fs) and version.trusted and key in _known:
        return _Hashed(version, _known[key])
    content = _content(file, version)
    if _version(file).stamp != version.stamp:
        raise UserError(f"{file.url} changes while its content is hashed; wait until nothing writes to it")
    if is_local(file.fs) and version.trusted:
        _known[key] = content
    return _Hashed(version, content)


def _content(file: CorpusFile, version: FileVersion) -> Content:
    if version.checksum is not None:
        return version.checksum
    with naming_file(file), file.fs.open(file.path, "rb") as stream:
        return (hashlib.file_digest(stream, "sha256").hexdigest(),)


def _version(file: CorpusFile) -> FileVersion:
    with naming_file(file):
        if is_local(file.fs):
            return _version_on_disk(Path(file.path))
        info = file.fs.info(file.path)
    checksum = next((str(info[key]) for key in _CHECKSUM_KEYS if info.get(key)), None)
    if checksum is not None:
        return FileVersion((str(info.get("size")), checksum), checksum=(info.get("size") or 0, checksum))
    times = tuple(str(info[key]) for key in _TIME_KEYS if info.get(key) is not None)
    return FileVersion((str(info.get("size")), *times))


def _version_on_disk(path: Path) -> FileVersion:
    status = path.stat()
    recent = max(status.st_mtime, status.st_ctime) > time.time() - _COARSEST_TIME
    stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
    return FileVersion(stamp, inode_changed=status.st_ctime_ns, recent=recent)
