"""Which files of a folder a process opens, whatever opens them: safetensors does so in Rust, unseen by Python."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened_files(folder: Path) -> Iterator[set[str]]:
    """Yield a set that holds, after the block, the files below the folder that were opened in it (by inotify)."""
    opened: set[str] = set()
    queue = _libc.inotify_init1(os.O_NONBLOCK)
    places: dict[int, Path] = {}
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        places[_libc.inotify_add_watch(queue, os.fsencode(place), _IN_OPEN)] = place
    assert -1 not in places
    try:
        yield opened
        opened.update(path.relative_to(folder).as_posix() for path in _events(queue, places) if path.is_file())
    finally:
        os.close(queue)


def _events(queue: int, places: dict[int, Path]) -> Iterator[Path]:
    while True:
        try:
            content = os.read(queue, 1 << 16)
        except BlockingIOError:
            return
        start = 0
        while start < len(content):
            watch, _, _, length = _EVENT.unpack_from(content, start)
            name = content[start + _EVENT.size : start + _EVENT.size + length].rstrip(b"\0")
            yield places[watch] / os.fsdecode(name)
            start += _EVENT.size + length
