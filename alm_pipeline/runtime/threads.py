"""How many threads a piece of work may use, and work that goes on in one beside its caller."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

_callers = ContextVar("callers", default=1)
_IN_BACKGROUND = 2
"""one that waits for the disk, and one that computes"""


def threads_at_once() -> int:
    """As many as OMP_NUM_THREADS says, as for the libraries below; otherwise one for each core that it may use.

    Of several processes on a machine each is given its share so, as torchrun, Dask and Ray do; of several callers in a
    process by `shared_by`.
    """
    given = (os.environ.get("OMP_NUM_THREADS") or "").split(",")[0]  # a number for each level of nesting
    return max(1, int(given or len(os.sched_getaffinity(0))) // _callers.get())


@contextmanager
def shared_by(callers: int) -> Iterator[None]:
    """What is started within is one of so many that work at once in this process."""
    before = _callers.set(callers)
    try:
        yield
    finally:
        _callers.reset(before)


@contextmanager
def in_background(function: Callable[..., object]) -> Iterator[Callable[..., None]]:
    """The function, to be called in a thread while its caller prepares the next call; up to two calls at a time.

    What a call raises is raised by a later one, or at the end, where all calls are done.
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
