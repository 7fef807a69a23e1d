"""Files in this machine's cache folder with what was derived from other files, so that it is derived once.

Each begins with a hash of its name and content. A file that is damaged, truncated or has another file's content is
treated as missing. Files are read whole, since a file that is mapped into memory ends the process if someone truncates
it.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from threading import get_ident

from storage.folders import cache_folder

_SEAL_BYTES = 64
"""a SHA-256 in hex; a multiple of 64, so that arrays after it are aligned"""


def read_derived(name: str) -> memoryview | None:
    """Return the content of a file, or None if there is none, or it is damaged."""
    try:
        content = memoryview(_file(name).read_bytes())
    except OSError:
        return None
    seal, content = content[:_SEAL_BYTES], content[_SEAL_BYTES:]
    return content if bytes(seal) == _seal(name, content) else None


def write_derived(name: str, content: bytes) -> None:
    """Write a file for later processes; does nothing if the folder is not writable.

    Processes and threads may write the same file at once: each renames a complete one into place.
    """
    file = _file(name)
    partial = file.with_name(f".{name}.{os.getpid()}-{get_ident()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as opened:
                opened.write(_seal(name, memoryview(content)))
                opened.write(content)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def _file(name: str) -> Path:
    return cache_folder() / "derived" / name


def _seal(name: str, content: memoryview) -> bytes:
    sealed = hashlib.sha256(f"{name}\n".encode())
    sealed.update(content)
    return sealed.hexdigest().encode()
