"""Leases for work that only one process may do at a time, and marks of the processes that write a dataset together.

On a disk the lease is a lock of the operating system (flock, by `filelock`), which is free at once when its holder is
killed; a file beside it names the holder. On an object store it is an object that its holder changes every few seconds.
A lease that has not changed for a minute is taken over; after one beat, if its holder was a process of this machine
that has ended. Only the waiting process's own clock counts, so clocks may differ. A holder that was suspended for
longer learns of this from `Lease.check`, before it publishes anything.

Several processes may write a dataset at once, each with a mark, which is a lease under a name of its own. What removes
a folder takes its lease, and then looks for marks; a writer sets its mark, and then waits while the lease is held. So
one of them sees the other, whichever begins first.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from storage.errors import UserError
from storage.local.holder import Holder
from storage.urls import (
    is_local,
    join_url,
    list_names,
    naming_errors,
    open_filesystem,
    overwrite,
    publish,
    read_bytes,
    remove,
)

LEASE = ".lease"
MARK = ".writing-"
"""the beginning of the names of writers' marks"""
HOLDER = ".holder"
"""the ending of the file beside a lock on a disk that names its holder"""
_log = logging.getLogger(__name__)


class HeldError(UserError):
    """A run is working in a folder that was to be changed or removed."""


class NoLocksError(UserError):
    """The file system has no locks."""


class Lease:
    """A lease that this process holds as long as `check` raises nothing. A lock on a disk can't be lost."""

    def __init__(self, url: str) -> None:
        self.url = url

    def check(self) -> None:
        """Raise UserError if another process has taken over the lease."""


@contextmanager
def hold(url: str) -> Iterator[Lease]:
    """Wait until no other process holds the lease at this URL, then hold it."""
    with _lease(url, waits=True) as lease:
        yield lease


@contextmanager
def hold_unused(folder: str) -> Iterator[Lease]:
    """Hold the lease of a folder in which no process works. Raises HeldError, naming the holder, if one does."""
    with _lease(join_url(folder, LEASE), waits=False) as lease:
        for name in list_names(folder):
            if is_mark(name):
                with _lease(join_url(folder, name), waits=False):
                    pass  # its writer has ended
        yield lease


@contextmanager
def marked_as_writer(folder: str) -> Iterator[None]:
    """Keep the folder from being removed inside the context, with other writers. Waits while its lease is held."""
    mark = join_url(folder, f"{MARK}{secrets.token_hex(4)}")
    with ExitStack() as stack:
        # without locks datasets are written all the same, since each shard appears at once, but can't be deleted
        with suppress(NoLocksError):
            stack.enter_context(_lease(mark, waits=True))
            with hold(join_url(folder, LEASE)):
                pass
        yield


def is_mark(name: str) -> bool:
    return name.startswith(MARK) and not name.endswith((HOLDER, ".tmp"))


def _lease(url: str, waits: bool) -> Any:
    fs, path = open_filesystem(url)
    return _lock_file(Path(path), waits) if is_local(fs) else _ObjectLease(url, waits)


@contextmanager
def _lock_file(path: Path, waits: bool) -> Iterator[Lease]:
    lock, holder = FileLock(path, fallback_to_soft=False), f"{path}{HOLDER}"
    with naming_errors(str(path), "locked"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not waits:
                raise _held(str(path.parent), Holder.of(read_bytes(holder))) from None
            _log.warning("%s: %s is working on this folder; waiting for it", path, Holder.of(read_bytes(holder)))
            lock.acquire()
        except NotImplementedError as error:
            # no lock by a file's mere existence, which would outlive a killed holder
            raise NoLocksError(
                f"{path}: can't be locked: this file system has no locks: use another storage"
            ) from error
    try:
        with suppress(UserError):  # it only serves messages: a full disk must not keep a folder from being deleted
            overwrite(holder, Holder.this_process().to_json())
        yield Lease(str(path))
    finally:
        with suppress(UserError):
            remove(holder)
        # removed while locked: a waiting process notices and creates the file again. Windows removes no open file
        with suppress(OSError):
            path.unlink()
        lock.release()


def _held(folder: str, holder: "Holder") -> HeldError:
    return HeldError(f"{folder}: {holder} is working on it: wait until it has ended, or stop it")


class _ObjectLease(Lease):
    """A lease in an object store, renewed by a thread."""

    BEAT_S = 10.0
    GIVEN_UP_AFTER_S = 60.0

    def __init__(self, url: str, waits: bool = True) -> None:
        super().__init__(url)
        self._waits = waits

    def __enter__(self) -> "_ObjectLease":
        self._holder = Holder.this_process()
        self._beats = 0
        self._acquire()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {self.url}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if self._is_ours():
                remove(self.url)
        except Exception as error:
            if kind is None:
                raise
            # the store may be away, which the error that ends the work says: this one must not hide it
            _log.warning("%s: the lease can't be given back, and is free in a minute: %s", self.url, error)

    def check(self) -> None:
        if not self._is_ours():
            raise UserError(
                f"{self.url}: taken over by another process, since this one did not renew its lease for over "
                f"{self.GIVEN_UP_AFTER_S:.0f} s: run it again, and it waits for the result of the other process"
            )

    def _is_ours(self) -> bool:
        return Holder.of(read_bytes(self.url)).token == self._holder.token

    def _acquire(self) -> None:
        current = publish(self.url, self._content())
        if current == self._content():
            return
        if self._waits:
            _log.warning("%s: %s is working on this folder; waiting for it", self.url, Holder.of(current))
        while True:
            if self._is_abandoned(current):
                # if two processes take over at once, the last content stays, and after a beat each sees whose it is
                overwrite(self.url, self._content())
                time.sleep(self.BEAT_S)
            current = publish(self.url, self._content())
            if current == self._content():
                return

    def _is_abandoned(self, current: bytes) -> bool:
        """Wait until the object is gone (False), or has not changed for so long that its holder must be dead (True).

        Raises HeldError at the first sign of life, if this lease does not wait for others.
        """
        changed = time.monotonic()
        if not self._waits and not Holder.of(current).has_ended():
            _log.warning(
                "%s: finding out whether %s is alive: up to %d s", self.url, Holder.of(current), self.GIVEN_UP_AFTER_S
            )
        while time.monotonic() - changed < self.GIVEN_UP_AFTER_S and not Holder.of(current).has_ended():
            time.sleep(self.BEAT_S / 4)
            content = read_bytes(self.url)
            if content is None:
                return False
            if content != current:
                current, changed = content, time.monotonic()
                if not self._waits:
                    raise _held(self.url.rsplit("/", 1)[0], Holder.of(current))
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
        return json.dumps(vars(self._holder) | {"beats": self._beats}).encode()
