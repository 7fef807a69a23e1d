"""Servers of killed runs are ended; servers of living runs are not."""

import os
import signal
import subprocess
import sys

import pytest

from flows.cli.embedded import end_orphans


def _server_like(owner: int) -> "subprocess.Popen[bytes]":
    """A process that looks like a run's embedded server."""
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "prefect.server.api.server:create_app"],
        env={**os.environ, "ALM_EMBEDDED_RUN": str(owner)},
    )


def test_only_orphans_are_ended() -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    orphan, owned = _server_like(finished.pid), _server_like(os.getpid())
    try:
        end_orphans()
        assert orphan.wait(timeout=10) == -signal.SIGKILL
        with pytest.raises(subprocess.TimeoutExpired):
            owned.wait(timeout=1)
    finally:
        for process in (orphan, owned):
            process.kill()
            process.wait()
