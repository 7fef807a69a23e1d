"""One process at a time; the lease of a dead process is taken over, that of a living one is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage import lease
from storage.errors import UserError
from storage.lease import hold
from storage.urls import join_url, list_names, overwrite, read_bytes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease._ObjectLease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease._ObjectLease, "GIVEN_UP_AFTER_S", 2.0)


@pytest.fixture
def url(root: str) -> str:
    return join_url(root, "folder", ".lease")


def test_only_one_works_at_a_time(url: str) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(3):
            with hold(url) as held:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.02)
                held.check()
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1]
    assert list_names(url.rsplit("/", 1)[0]) == []


def test_a_waiting_process_logs_it(url: str, caplog: pytest.LogCaptureFixture) -> None:
    def wait() -> None:
        with hold(url):
            pass

    with hold(url):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(2.5)  # longer than the wait for a dead holder
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
    assert "working on this folder; waiting for it" in caplog.text


DEAD = b'{"holder": "elsewhere 1 abc", "beats": 3}'


def test_a_dead_holders_object_is_taken_over() -> None:
    url = "memory://bucket/dead/.lease"
    overwrite(url, DEAD)
    started = time.monotonic()
    with hold(url) as held:
        assert time.monotonic() - started >= 2.0
        held.check()
        assert read_bytes(url) != DEAD
    assert read_bytes(url) is None


def test_a_holder_that_was_suspended_too_long_gets_an_error() -> None:
    url = "memory://bucket/away/.lease"
    with ExitStack() as stack:
        held = stack.enter_context(hold(url))
        overwrite(url, DEAD)
        time.sleep(0.3)
        with pytest.raises(UserError, match="taken over by another process"):
            held.check()
    assert read_bytes(url) == DEAD  # not removed by a process that lost it


HOLD = """
import sys, time
from storage.lease import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lease")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_killed_process_of_this_machine_is_not_waited_for(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease._ObjectLease, "GIVEN_UP_AFTER_S", 1e9)
    command = [sys.executable, "-c", HOLD, f"{s3_root}/.lease"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    with hold(f"{s3_root}/.lease") as held:
        held.check()


def test_a_killed_process_frees_a_disks_lock_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    with hold(str(tmp_path / ".lease")):
        pass
    assert list_names(str(tmp_path)) == []
