"""Runs on one machine without a server: Prefect's embedded server, quiet, and always ended with its run.

This has to run before Prefect is imported, since Prefect reads its environment variables at import.
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
    # the command itself reports an error, once and without Prefect's traceback
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
}


def prepare() -> None:
    """Set the variables of an embedded run that the user has not set, and end the servers of runs that were killed."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    end_orphans()
    os.environ[_OWNER] = str(os.getpid())
    # by default Python ends without exit handlers on SIGTERM; Prefect stops its server in one
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def end_orphans() -> None:
    """End embedded servers whose run was killed.

    A server inherits its run's process id in its environment. If that process is gone, the server is an orphan.
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
