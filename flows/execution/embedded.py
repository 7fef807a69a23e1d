"""Runs on one machine without a server: Prefect's server, started by the run and always ended with it.

Prefect would start one itself, in the terminal's process group: Ctrl-C ends it, and the run then waits a minute for it.
So this one has a session of its own, and ends by itself if the run is killed.
"""

import atexit
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from typing import IO

from alm_pipeline.runtime.own_packages import environment_with_own
from storage.errors import UserError

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # the command itself reports an error, once and without Prefect's traceback
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
}
_OF_SERVER = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""as Prefect sets them for a server that it starts itself: without its interface, schedules and automations"""
_STARTS_WITHIN_S = 90.0
_ENDS_WITHIN_S = 5.0


def prepare() -> None:
    """Set the variables of a run that the user has not set. Prefect reads them when it is imported.

    Raises ModuleNotFoundError if it is not installed; to import it here would take seconds.
    """
    if find_spec("prefect") is None:
        raise ModuleNotFoundError("No module named 'prefect'", name="prefect")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


_entered = ExitStack()
"""until the process ends: Prefect sends its last events from an exit handler"""


def use_server() -> None:
    """Use the user's Prefect server. If none is configured, start one that ends with this process.

    Raises UserError if it does not start.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if not PREFECT_API_URL.value():
        url = f"http://127.0.0.1:{_start_server()}/api"
        _entered.enter_context(temporary_settings({PREFECT_API_URL: url}))


def _start_server() -> int:
    """Start the server, and return its port once it answers."""
    from prefect.settings import get_current_settings

    environment = environment_with_own() | get_current_settings().to_environment_variables(exclude_unset=True)
    command = (sys.executable, "-m", "flows.execution.server_process", str(os.getpid()))
    with tempfile.TemporaryFile() as errors:
        server = subprocess.Popen(
            command,
            env=environment | _OF_SERVER,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        # before Prefect's own handlers, so after them at exit
        atexit.register(_end, server)
        assert server.stdout
        port = server.stdout.readline()
        if not port or not _answers(server, int(port)):
            raise UserError(f"Prefect's embedded server does not start:\n{_last_lines(errors)}")
    return int(port)


def _answers(server: "subprocess.Popen[bytes]", port: int) -> bool:
    """Wait until the server answers; False if it ends, or takes too long."""
    import httpx

    deadline = time.monotonic() + _STARTS_WITHIN_S
    with httpx.Client(trust_env=False) as client:
        while server.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"http://127.0.0.1:{port}/api/health").status_code == 200:
                    return True
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
    return False


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _last_lines(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-20:]) or "it wrote no error"
