"""One process at a time; the lease of a dead process is taken over, that of a living one is not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from storage import lease
from storage.errors import UserError
from storage.lease import HeldError, hold, hold_unused, marked_as_writer
from storage.local.holder import Holder
from storage.urls import join_url, list_names, overwrite, publish, read_bytes


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
from storage.local.holder import Holder
from storage.lease import HeldError, hold, hold_unused, marked_as_writer
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


GARBAGE = {
    "empty": b"",
    "half": b'{"host": "elsewh',
    "not JSON": b"\xff\xfe\x00",
    "a list": b"[1]",
    "a number": b"7",
    "null": b"null",
    "other types": b'{"host": 1, "pid": "x", "machine": [], "started": {}, "token": null, "since": 3}',
    "of an older version": DEAD,
    "of another machine": b'{"host": "elsewhere", "machine": "boot/pid", "pid": 1, "token": "ab", "since": "then"}',
    "of a clock that is years ahead": b'{"host": "elsewhere", "token": "ab", "since": "2099-01-01 00:00:00+00:00"}',
}


@pytest.mark.bad_input
@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_lease_that_says_nothing_is_waited_for_and_taken_over(
    monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Only this process's own clock decides, whatever the content says."""
    monkeypatch.setattr(lease._ObjectLease, "GIVEN_UP_AFTER_S", 0.3)
    url = "memory://bucket/garbage/.lease"
    overwrite(url, content)
    started = time.monotonic()
    with hold(url) as held:
        assert time.monotonic() - started >= 0.3
        held.check()
    assert read_bytes(url) is None


@pytest.mark.bad_input
@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_lock_on_a_disk_does_not_depend_on_its_files(tmp_path: Path, content: bytes) -> None:
    for name in (".lease", ".lease.holder"):
        (tmp_path / name).write_bytes(content)
    with hold_unused(str(tmp_path)):
        pass
    assert list_names(str(tmp_path)) == []


def test_a_holder_whose_number_another_process_has_now_has_ended() -> None:
    url = "memory://bucket/reused/.lease"
    ended = vars(Holder.this_process()) | {"started": 1.0, "beats": 3}
    overwrite(url, json.dumps(ended).encode())
    started = time.monotonic()
    with hold(url) as held:
        held.check()
    assert time.monotonic() - started < lease._ObjectLease.GIVEN_UP_AFTER_S


Holding = Callable[[str], object]


@pytest.mark.parametrize("holding", [lambda folder: hold(f"{folder}/.lease"), marked_as_writer], ids=["lease", "mark"])
def test_a_folder_in_use_names_who_uses_it_and_since_when(root: str, holding: Holding) -> None:
    folder = join_url(root, "folder")
    with ExitStack() as stack:
        stack.enter_context(holding(folder))  # type: ignore[arg-type]
        with (
            pytest.raises(
                HeldError, match=rf"{folder}: process {os.getpid()} on .* \(since 20.*\) is working on it: wait"
            ),
            hold_unused(folder),
        ):
            pass
    with hold_unused(folder):
        pass
    assert list_names(folder) == []


def test_several_write_at_once_and_wait_for_a_removal(root: str) -> None:
    folder, order = join_url(root, "folder"), list[str]()

    def write() -> None:
        with marked_as_writer(folder):
            order.append("written")

    with marked_as_writer(folder), marked_as_writer(folder):
        pass
    with hold_unused(folder):
        waiting = threading.Thread(target=write)
        waiting.start()
        time.sleep(0.5)
        order.append("removed")
    waiting.join(10)
    assert order == ["removed", "written"]
    assert list_names(folder) == []


MARK = """
import sys, time
from storage.lease import _ObjectLease, marked_as_writer
_ObjectLease.BEAT_S = 0.05
with marked_as_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_killed_writers_mark_is_in_nobodys_way(request: pytest.FixtureRequest, tmp_path: Path, where: str) -> None:
    folder = str(tmp_path) if where == "disk" else str(request.getfixturevalue("s3_root"))
    command = [sys.executable, "-c", MARK, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(HeldError), hold_unused(folder):
            pass
        process.kill()
    with hold_unused(folder):
        pass
    assert [name for name in list_names(folder) if not name.endswith(".holder")] == []


def test_a_file_system_without_locks_is_reported_and_its_datasets_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with marked_as_writer(str(tmp_path)):
        publish(str(tmp_path / "shard"), b"x")
    with pytest.raises(UserError, match=r"this file system has no locks"), hold_unused(str(tmp_path)):
        pass
    assert list_names(str(tmp_path)) == ["shard"]
