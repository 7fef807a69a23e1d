"""Ends a command within seconds, at any moment, by a signal: a process that only waits for the one that does the work.

A function in C or Rust can keep Python's own signal handlers from running for a minute: a library that loads, a
tokenizer that is trained. So the command's process does no work. It forks a worker, waits for it, and ends it together
with everything that it started. All that a command writes survives a `kill -9`, so the worker gets a short time to
release leases and to report to a Prefect server, and is then killed.

The worker is in the same process group, so that it can read from the terminal and Ctrl-Z stops it too. It ignores what
a terminal sends (SIGINT, SIGHUP) and stops on SIGUSR1, which only the supervisor sends.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

RUN = "ALM_RUN"
"""the environment variable that all processes of a command inherit, even those that outlive their parents"""
GRACE_S = 1.5
_DEBOUNCE_S = 0.5
"""`timeout` sends a signal twice: to its child, and to the child's group"""
_STATUS_STOPPED = 128 + signal.SIGTERM
_CAUSES = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "the terminal was closed",
}


def run_supervised(work: Callable[[], None], advice: str) -> None:
    """Do the work in a process that is ended, with all of its children, when this one gets SIGINT, SIGTERM or SIGHUP.

    Returns only in the worker; this process exits with the worker's status, or with 128 + the signal after one sentence
    on stderr that ends with the `advice`. A signal that is ignored from the start (nohup, background jobs) stays so.
    """
    handled = {number for number in _CAUSES if signal.getsignal(number) != signal.SIG_IGN}
    blocked = handled | {signal.SIGCHLD, signal.SIGALRM}
    # signals wait from here on, so that none is lost before the supervisor takes them
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    supervisor = os.getpid()
    os.environ[RUN] = f"{supervisor}-{os.urandom(8).hex()}"
    if worker := os.fork():
        _Supervisor(worker, handled, advice).exit_with_worker()
    _be_worker(supervisor)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    try:
        work()
    finally:
        if _stopping.is_set():  # without exit handlers, which wait for threads
            os._exit(_STATUS_STOPPED)


def end_with_parent(parent: int) -> None:
    """Kill this process once its parent, which started it, has ended: a killed parent can't end its children."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


_stopping = threading.Event()
"""set in a worker that was asked to stop"""


def _be_worker(supervisor: int) -> None:
    end_with_parent(supervisor)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _unwind)
    signal.signal(signal.SIGUSR1, _stop_in_silence)


def _stop_in_silence(*_: object) -> None:
    """Show nothing from now on, and raise what SIGTERM raises: during a flow, that is Prefect's TerminationSignal."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(sink, stream)
    signal.raise_signal(signal.SIGTERM)


def _unwind(*_: object) -> None:
    if not _stopping.is_set():  # a second SIGTERM must not interrupt what releases leases
        _stopping.set()
        raise SystemExit(_STATUS_STOPPED)


class _Supervisor:
    """The process that the user started. The signals that it handles are blocked, and taken with sigwait."""

    def __init__(self, worker: int, handled: set[signal.Signals], advice: str) -> None:
        self.worker, self.handled, self.advice = worker, handled, advice

    def exit_with_worker(self) -> NoReturn:
        import psutil  # noqa: F401  # before it is needed in a hurry

        status = 1
        try:
            status = self._wait()
        finally:
            os._exit(status)

    def _wait(self) -> int:
        while True:
            number = signal.sigwait(self.handled | {signal.SIGCHLD})
            if number != signal.SIGCHLD:
                self._stop()
                return self._report(signal.Signals(number))
            code = self._exit_code()
            if code is not None:
                return code if code >= 0 and code != _STATUS_STOPPED else self._report_end(-code)

    def _exit_code(self) -> int | None:
        """Return the worker's exit code, negative where a signal ended it; None while it runs or is suspended."""
        pid, status = os.waitpid(self.worker, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def _stop(self) -> None:
        """Ask the worker to stop. At the end of the grace period, or at another signal, kill what is left."""
        family = _family(self.worker)
        os.kill(self.worker, signal.SIGUSR1)
        os.kill(self.worker, signal.SIGCONT)
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        while (number := signal.sigwait(self.handled | {signal.SIGCHLD, signal.SIGALRM})) != signal.SIGALRM:
            if number == signal.SIGCHLD and self._exit_code() is not None:
                break
            if number in self.handled and time.monotonic() - start > _DEBOUNCE_S:
                break
        _kill(family | _family(self.worker))

    def _report_end(self, number: int) -> int:
        """Report that something else has ended the worker, and end what it left."""
        _kill(_family(self.worker))
        if number in (signal.SIGTERM, -_STATUS_STOPPED):
            return self._report(signal.SIGTERM)
        name = signal.Signals(number).name
        _write_line(f"error: the command was killed ({name}): out of memory, or by hand? {_capitalize(self.advice)}")
        return 128 + number

    def _report(self, number: signal.Signals) -> int:
        _write_line(f"{_CAUSES[number]}: {self.advice}")
        return 128 + number


def _family(worker: int) -> "set[psutil.Process]":
    """Return the worker, its descendants, and what a descendant that has ended left."""
    import psutil

    try:
        process = psutil.Process(worker)
        tree = {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        tree = set()
    return tree | {process for process in psutil.process_iter() if _is_of_this_run(process)}


def _is_of_this_run(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.pid != os.getpid() and process.environ().get(RUN) == os.environ[RUN]
    except (psutil.Error, OSError):
        return False


def _kill(family: "Iterable[psutil.Process]") -> None:
    import psutil

    members = list(family)
    for member in members:
        with suppress(psutil.Error):
            member.kill()
    deadline = time.monotonic() + 1
    while any(map(_is_alive, members)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _is_alive(process: "psutil.Process") -> bool:
    """Whether it still runs; one that has ended may stay a zombie until its own parent notices."""
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _write_line(line: str) -> None:
    """Write to stderr, below the progress bars and with the cursor that they hide; to nobody rather than wait."""
    is_terminal = os.isatty(2) and os.environ.get("TERM") not in (None, "", "dumb", "unknown")
    content = f"\x1b[?25h\r\n{line}\n" if is_terminal else f"{line}\n"
    with suppress(OSError):
        if select.select([], [2], [], 0.5)[1]:
            os.write(2, content.encode())


def _capitalize(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
