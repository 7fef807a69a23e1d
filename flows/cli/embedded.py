"""Runs on one machine without a server: Prefect's embedded server, quiet, and never left behind.

Imported before Prefect: what it puts into the environment is read when Prefect is imported.
"""

import os
import signal
import sys

import psutil

_OWNER = "ALM_EMBEDDED_RUN"
_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    # the default of 20 s is too short on a cold or busy machine
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    # an error is told by the command itself, once and without Prefect's traceback
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
}


def prepare() -> None:
    """Set what an embedded run needs, where the user has not, and end the servers of runs that were killed."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    end_orphans()
    os.environ[_OWNER] = str(os.getpid())
    # Python ends at once on SIGTERM, and Prefect stops its server at exit
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def end_orphans() -> None:
    """End embedded servers whose run was killed.

    A server inherits its run's process id in its environment, so one whose run is gone is an orphan.
    """
    for process in psutil.process_iter():
        owner = _owner(process)
        if owner and not psutil.pid_exists(owner):
            process.kill()


def _owner(process: psutil.Process) -> int | None:
    try:
        value = process.environ().get(_OWNER)
        is_server = any("prefect.server.api.server" in part for part in process.cmdline())
    except (psutil.Error, OSError):
        return None
    return int(value) if value and is_server else None
