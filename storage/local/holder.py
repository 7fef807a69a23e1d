"""The process that holds a lease: how it describes itself to others, on this machine or another one."""

import json
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease, as it describes itself; None for what is not known."""

    host: str | None = None
    machine: str | None = None
    pid: int | None = None
    started: float | None = None
    """when the process started: process numbers are used again"""
    token: str | None = None
    since: str | None = None
    """when it took the lease, by its own clock"""

    @classmethod
    def this_process(cls) -> "Holder":
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        started = psutil.Process().create_time()
        return cls(socket.gethostname(), _machine(), os.getpid(), started, secrets.token_hex(8), now)

    @classmethod
    def of(cls, content: bytes | None) -> "Holder":
        """Read what is stored; from what is damaged, or of another version, an unknown holder."""
        try:
            stored: Any = json.loads(content or b"{}")
            kinds = {"host": str, "machine": str, "pid": int, "started": float, "token": str, "since": str}
            known = {name: stored[name] for name, kind in kinds.items() if isinstance(stored.get(name), kind)}
            return cls(**known)
        except (ValueError, AttributeError):
            return cls()

    def to_json(self) -> bytes:
        return json.dumps(vars(self)).encode()

    def has_ended(self) -> bool:
        """Return whether it was a process of this machine that has ended."""
        if self.machine is None or self.machine != _machine() or self.machine == "unknown" or self.pid is None:
            return False
        try:
            return self.started is not None and abs(psutil.Process(self.pid).create_time() - self.started) > 1
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def __str__(self) -> str:
        if self.host is None:
            return "another process"
        return f"process {self.pid} on {self.host} (since {self.since})"


def _machine() -> str:
    """Identify the set of processes that share process numbers with this one; "unknown" off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "unknown"
