"""The number of threads that work may use, and calls in background threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

_callers = ContextVar("callers", default=1)
_IN_BACKGROUND = 2
"""One call that waits for the disk, and one that computes."""
_MOST_AHEAD = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads_at_once() -> int:
    """Return the number of threads to use: OMP_NUM_THREADS, as in numeric libraries, or the number of usable cores.

    Several processes on a machine get their shares through this variable, as torchrun, Dask and Ray set it; several
    callers in one process through `shared_by`.
    """
    setting = (os.environ.get("OMP_NUM_THREADS") or "").split(",")[0]  # one number per level of nesting
    return max(1, int(setting or usable_cores()) // _callers.get())


def usable_cores() -> int:
    """Return the number of cores that this process may use: on Linux those of its affinity, elsewhere all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def shared_by(callers: int) -> Iterator[None]:
    """Declare that `callers` callers work at once in this process; each gets its share of the threads."""
    before = _callers.set(callers)
    try:
        yield
    finally:
        _callers.reset(before)


@contextmanager
def meanwhile(function: Callable[[], object]) -> Iterator[None]:
    """Call a function in a thread while the block does something else, and wait for it at the end."""
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(function)
        yield
        call.result()


@contextmanager
def in_background(function: Callable[..., object]) -> Iterator[Callable[..., None]]:
    """Yield the function, to be called in a thread while its caller prepares the next call; up to two calls at once.

    An error in a call is raised by a later call, or at the end, when all calls are done.
    """
    running = deque[Future[object]]()

    def call(*arguments: object) -> None:
        if len(running) == _IN_BACKGROUND:
            running.popleft().result()
        running.append(threads.submit(function, *arguments))

    with ThreadPoolExecutor(_IN_BACKGROUND) as threads:
        yield call
        while running:
            running.popleft().result()


def results_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the function's results in order. One thread per core computes the next ones while the caller uses one."""
    at_once = min(threads_at_once(), _MOST_AHEAD)
    with ThreadPoolExecutor(at_once) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
