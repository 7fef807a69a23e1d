"""A command in a real terminal of its own: a session, a foreground process group, and what a person would see."""

import os
import pty
import re
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
ALM = (sys.executable, "-m", "alm_pipeline")
CTRL_C = b"\x03"
_MARK = "ALM_TERMINAL"
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Terminal:
    """Runs a command in a pseudo-terminal, and collects what it shows."""

    def __init__(self, *command: str, cwd: Path, environment: Mapping[str, str] | None = None) -> None:
        self.mark, self.output, self.status = secrets.token_hex(8), b"", -1
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", _MARK: self.mark}
        variables |= environment or {}
        self.pid, self._terminal = pty.fork()
        if not self.pid:
            os.chdir(cwd)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # as in a shell, even under nohup
                signal.signal(number, signal.SIG_DFL)
            os.execve(command[0], command, variables)
        self.wait_until(lambda: bool(self.processes()), "its start")

    @property
    def text(self) -> str:
        """What was shown, without colors and movements of the cursor."""
        return _ESCAPES.sub("", self.output.decode(errors="replace")).replace("\r\n", "\n")

    def read(self, seconds: float = 0.01) -> None:
        """Take what is shown within this time; without a reader the command would wait."""
        while self._terminal >= 0 and select.select([self._terminal], [], [], seconds)[0]:
            try:
                content = os.read(self._terminal, 65536)
            except OSError:  # no process has the terminal open any more
                return
            if not content:
                return
            self.output += content
            seconds = 0

    def wait_until(self, happens: Callable[[], bool], what: str, seconds: float = 600) -> None:
        """Show what is printed until something happens. Raises AssertionError when the command ends before that."""
        deadline = time.monotonic() + seconds
        while not happens():
            self.read()
            assert not self.ended(), f"ended before {what}:\n{self.text[-3000:]}"
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{self.text[-3000:]}"

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def close(self) -> None:
        """Close the window. The system sends SIGHUP."""
        os.close(self._terminal)
        self._terminal = -1

    def ended(self) -> bool:
        """Whether the command has ended, with its exit code in `status`, negative for a signal."""
        if self.status == -1 and self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid, self.status = 0, os.waitstatus_to_exitcode(status)
        return not self.pid

    def seconds_to_end(self, limit: float) -> float:
        """Wait for the end of the command; return how long that took."""
        start = time.monotonic()
        while not self.ended():
            self.read()
            assert time.monotonic() - start < limit, f"has not ended after {limit} s:\n{self.text[-3000:]}"
        took = time.monotonic() - start
        self.read()
        return took

    def processes(self) -> list[psutil.Process]:
        """The command's processes, wherever they are: each inherits a mark in its environment."""
        return [process for process in psutil.process_iter() if _environment(process).get(_MARK) == self.mark]

    def wait_until_gone(self, limit: float) -> None:
        """Wait until none of the command's processes is left, where the command itself was killed."""
        start = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - start < limit, left
            time.sleep(0.05)

    def is_running(self, part: str) -> bool:
        """Whether one of the processes has this in its command line."""
        return any(part in " ".join(_command_line(process)) for process in self.processes())

    def kill(self) -> None:
        """Leave nothing behind after a failed test."""
        for process in self.processes():
            process.send_signal(signal.SIGKILL)
        if self.pid:
            os.waitpid(self.pid, 0)
        if self._terminal >= 0:
            self.close()


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
