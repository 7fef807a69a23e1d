"""Leases for work that only one process may do at a time, on files that change in place such as checkpoints.

On a disk the lease is a lock of the operating system (flock, by `filelock`), which is free at once when its holder is
killed. On an object store it is an object that its holder changes every few seconds. A lease that has not changed for a
minute is taken over; after one beat, if its holder was a process of this machine that has ended. A holder that was
suspended for longer learns of this from `Lease.check`, before it publishes anything.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from storage.errors import UserError
from storage.urls import is_local, open_filesystem, overwrite, publish, read_bytes, remove

_log = logging.getLogger(__name__)


class Lease:
    """A lease that this process holds as long as `check` raises nothing. A lock on a disk can't be lost."""

    def __init__(self, url: str) -> None:
        self.url = url

    def check(self) -> None:
        """Raise UserError if another process has taken over the lease."""


@contextmanager
def hold(url: str) -> Iterator[Lease]:
    """Wait until no other process holds the lease at this URL, then hold it."""
    fs, path = open_filesystem(url)
    with _lock_file(Path(path)) if is_local(fs) else _ObjectLease(url) as lease:
        yield lease


@contextmanager
def _lock_file(path: Path) -> Iterator[Lease]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # where a file system has no locks, an error: a lock by a file's mere existence would outlive a killed holder
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _log.warning("%s: another process is working on this folder; waiting for it", path)
        lock.acquire()
    try:
        yield Lease(str(path))
    finally:
        # removed while locked: a waiting process notices and creates the file again. Windows removes no open file
        with suppress(OSError):
            path.unlink()
        lock.release()


class _ObjectLease(Lease):
    """A lease in an object store, renewed by a thread."""

    BEAT_S = 10.0
    GIVEN_UP_AFTER_S = 60.0

    def __enter__(self) -> "_ObjectLease":
        self._holder = f"{socket.gethostname()} {_machine()} {os.getpid()} {secrets.token_hex(4)}"
        self._beats = 0
        self._acquire()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {self.url}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_ours():
            remove(self.url)

    def check(self) -> None:
        if not self._is_ours():
            raise UserError(
                f"{self.url}: taken over by another process, since this one did not renew its lease for over "
                f"{self.GIVEN_UP_AFTER_S:.0f} s: run it again, and it waits for the result of the other process"
            )

    def _is_ours(self) -> bool:
        return _holder(read_bytes(self.url)) == self._holder

    def _acquire(self) -> None:
        current = publish(self.url, self._content())
        if current == self._content():
            return
        _log.warning("%s: %s is working on this folder; waiting for it", self.url, _holder(current))
        while True:
            if self._is_abandoned(current):
                # if two processes take over at once, the last content stays, and after a beat each sees whose it is
                overwrite(self.url, self._content())
                time.sleep(self.BEAT_S)
            current = publish(self.url, self._content())
            if current == self._content():
                return

    def _is_abandoned(self, current: bytes) -> bool:
        """Wait until the object is gone (False), or has not changed for so long that its holder must be dead (True)."""
        changed = time.monotonic()
        while time.monotonic() - changed < self.GIVEN_UP_AFTER_S and not _ended_here(_holder(current)):
            time.sleep(self.BEAT_S / 4)
            content = read_bytes(self.url)
            if content is None:
                return False
            if content != current:
                current, changed = content, time.monotonic()
        return True

    def _beat(self) -> None:
        while not self._stop.wait(self.BEAT_S):
            try:
                if not self._is_ours():
                    return
                self._beats += 1
                overwrite(self.url, self._content())
            except Exception as error:  # the store may be unreachable for a while
                _log.warning("%s: the lease can't be renewed: %s", self.url, error)

    def _content(self) -> bytes:
        return json.dumps({"holder": self._holder, "beats": self._beats}).encode()


def _machine() -> str:
    """Identify the set of processes that share process numbers with this one; "unknown" off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "unknown"


def _ended_here(holder: str) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    machine, process = holder.split()[-3:-1] if len(holder.split()) > 3 else ("unknown", "0")
    return machine == _machine() != "unknown" and not psutil.pid_exists(int(process))


def _holder(content: bytes | None) -> str:
    try:
        stored: Any = json.loads(content or b"{}")
        return str(stored["holder"])
    except (ValueError, KeyError, TypeError):
        return "nobody"
