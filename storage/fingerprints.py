"""Fingerprints: short hashes of everything that decides the bytes of a dataset."""

import hashlib
import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from storage.errors import UserError
from storage.schemas import FORMAT_VERSION

_LABEL_BYTES = 200


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return 16 hex digits of the SHA-256 of the identity's canonical JSON."""
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def stored_name(kind: str, label: str, identity: Mapping[str, Any]) -> str:
    """Return a folder's name: the label and the fingerprint, so that two configurations never share a folder.

    A label of over 200 bytes is cut: a name has at most 255 on most disks, and a student of a student of a student is
    called after all of them.
    """
    label = label.encode()[:_LABEL_BYTES].decode(errors="ignore")
    return f"{label}-{fingerprint({'kind': kind, 'format': FORMAT_VERSION, 'identity': dict(identity)})}"


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity as it is read back from a manifest: tuples become lists."""
    result: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    return result


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a local file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return the SHA-256 over the names and contents of the files in `folder` that match, in hex.

    Raises UserError if no file matches: an identity of nothing would fit everything.
    """
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    if not files:
        raise UserError(f"{folder}: contains none of {', '.join(patterns)}")
    return combine_hashes({file.relative_to(folder).as_posix(): hash_file(file) for file in files})


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 over the names and SHA-256s of files, in hex."""
    lines = [f"{name} {hashes[name]}" for name in sorted(hashes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Stamp(NamedTuple):
    """What a file system knows of a file without reading it."""

    bytes: int
    modified_ns: int
    changed_ns: int
    """when content, links or permissions changed; unlike `modified_ns`, no program can set it"""
    inode: int


class ReadFiles:
    """Files that a stage reads, by name, as they were when it began: it must not finish if they are others by then."""

    def __init__(self, name_files: Callable[[], Mapping[str, Path]]) -> None:
        """`name_files` returns the files by name, each time as they are found then."""
        self._name_files = name_files
        self._files = dict(name_files())
        self._stamps = {name: _stamp(file) for name, file in self._files.items()}
        self._hashes: Mapping[str, str] | None = None

    @property
    def hashes(self) -> Mapping[str, str]:
        """The SHA-256 of each file's content, computed once. Raises UserError as `check` does."""
        if self._hashes is None:
            self._hashes = {name: _hash_existing(file) for name, file in self._files.items()}
            self.check()
        return self._hashes

    def check(self) -> None:
        """Raise UserError if a file was replaced, changed, added or removed since this object was made.

        Costs no more than listing the files, unless one seems to be the same under another inode or time of change
        (after `chmod`, or on some network file systems): its content is hashed again then.
        """
        files = self._name_files()
        changed = sorted(files.keys() ^ self._files.keys())
        changed += [name for name in files.keys() & self._files.keys() if self._is_other(name)]
        if changed:
            file = (self._files | dict(files))[changed[0]]
            raise UserError(
                f"{file}: was changed while it was in use, so what is made with it would not be what its name says: "
                "run again, and leave the files of models and tokenizers alone meanwhile"
            )

    def _is_other(self, name: str) -> bool:
        then, now = self._stamps[name], _stamp(self._files[name])
        if then == now:
            return False
        if (then.bytes, then.modified_ns) != (now.bytes, now.modified_ns):
            return True
        if self._hashes is None:
            return then.inode != now.inode and then.changed_ns != now.changed_ns
        if _hash_existing(self._files[name]) != self._hashes[name]:
            return True
        self._stamps[name] = now
        return False


def _stamp(file: Path) -> _Stamp:
    try:
        info = file.stat()
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}): restore it, or change what names it") from error
    if not stat.S_ISREG(info.st_mode):  # reading a FIFO or a device may never end
        raise UserError(f"{file}: is not a regular file: put the file itself there, or change what names it")
    return _Stamp(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


def _hash_existing(file: Path) -> str:
    try:
        return hash_file(file)
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}): restore it, or change what names it") from error
