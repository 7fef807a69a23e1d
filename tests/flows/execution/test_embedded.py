"""The embedded server is in a session of its own, answers, and ends with its run, even if that is killed."""

import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest

from flows.execution import embedded
from storage.errors import UserError
from tests.flows.loopback import wait_for

RUN = """
from flows.execution import embedded
embedded.prepare()
embedded.use_server()
from prefect.settings import PREFECT_API_URL
print(PREFECT_API_URL.value(), flush=True)
input()
"""


def run_with_server() -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("is_killed", [False, True], ids=["at its end", "when it is killed"])
def test_the_server_ends_with_its_run(is_killed: bool) -> None:
    run = run_with_server()
    assert run.stdin
    assert run.stdout
    url = run.stdout.readline().strip()
    assert httpx.get(f"{url}/health").json() is True
    (server,) = psutil.Process(run.pid).children(recursive=True)
    assert os.getsid(server.pid) == server.pid != os.getsid(run.pid)
    if is_killed:
        run.send_signal(signal.SIGKILL)
    run.communicate("\n")
    wait_for("the server's end", lambda: has_ended(server), seconds=30)


def test_a_server_that_does_not_start_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_OF_SERVER", {"PREFECT_SERVER_API_PORT": "many"})
    with pytest.raises(UserError, match=r"(?s)embedded server does not start:.*many"):
        embedded._start_server()
