"""Work that only one process may do at a time: on files that are changed in place, such as a training's checkpoints.

On a disk a lock of the operating system, which a killed process gives back at once. On an object store an object that
its holder changes every few seconds: one that nobody changed for a minute is taken over, one of a process that ended on
this machine after a beat. A holder that was away for longer sees that when it asks (`Lease.check`), before it
publishes anything.
"""

import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from storage.errors import UserError
from storage.urls import is_local, open_filesystem, overwrite, publish, read_bytes, remove

_log = logging.getLogger(__name__)


class Lease:
    """What is held, as long as `check` raises nothing. A disk's lock can't be lost."""

    def __init__(self, url: str) -> None:
        self.url = url

    def check(self) -> None:
        """Raises UserError when another process took the lease over."""


@contextmanager
def hold(url: str) -> Iterator[Lease]:
    """Wait until no other process holds the lease at this URL, and hold it."""
    fs, path = open_filesystem(url)
    with _lock_file(Path(path)) if is_local(fs) else _Beating(url) as lease:
        yield lease


@contextmanager
def _lock_file(path: Path) -> Iterator[Lease]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path)
    try:
        yield Lease(str(path))
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    """The descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("%s: another process works here, waiting for it", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its last holder removed it meanwhile


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class _Beating(Lease):
    """A lease in an object store."""

    BEAT_S = 10.0
    GIVEN_UP_AFTER_S = 60.0

    def __enter__(self) -> "_Beating":
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
                f"{self.url}: taken over by another process, since this one gave no sign of life for over "
                f"{self.GIVEN_UP_AFTER_S:.0f} s: run it again, and it waits for the other one's result"
            )

    def _is_ours(self) -> bool:
        return _holder(read_bytes(self.url)) == self._holder

    def _acquire(self) -> None:
        standing = publish(self.url, self._content())
        if standing == self._content():
            return
        _log.warning("%s: %s works here, waiting for it", self.url, _holder(standing))
        while True:
            if self._is_given_up(standing):
                # two may take it over at once: the last one's content stays, and after a beat each sees whose
                overwrite(self.url, self._content())
                time.sleep(self.BEAT_S)
            standing = publish(self.url, self._content())
            if standing == self._content():
                return

    def _is_given_up(self, standing: bytes) -> bool:
        """Wait until the object is gone (False), or was not changed for so long that its holder must be dead (True)."""
        changed = time.monotonic()
        while time.monotonic() - changed < self.GIVEN_UP_AFTER_S and not _ended_here(_holder(standing)):
            time.sleep(self.BEAT_S / 4)
            found = read_bytes(self.url)
            if found is None:
                return False
            if found != standing:
                standing, changed = found, time.monotonic()
        return True

    def _beat(self) -> None:
        while not self._stop.wait(self.BEAT_S):
            try:
                if not self._is_ours():
                    return
                self._beats += 1
                overwrite(self.url, self._content())
            except Exception as error:  # the store may be away for a while
                _log.warning("%s: can't be renewed: %s", self.url, error)

    def _content(self) -> bytes:
        return json.dumps({"holder": self._holder, "beats": self._beats}).encode()


def _machine() -> str:
    """What processes have in common that see the same process numbers, as far as it is known here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "unknown"


def _ended_here(holder: str) -> bool:
    """Whether it was a process of this machine that is no more."""
    machine, process = holder.split()[-3:-1] if len(holder.split()) > 3 else ("unknown", "0")
    return machine == _machine() != "unknown" and not psutil.pid_exists(int(process))


def _holder(content: bytes | None) -> str:
    try:
        stored: Any = json.loads(content or b"{}")
        return str(stored["holder"])
    except (ValueError, KeyError, TypeError):
        return "nobody"
