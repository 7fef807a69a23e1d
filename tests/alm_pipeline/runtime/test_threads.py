"""The number of threads for each of several callers, and background calls."""

import os
import threading
from queue import Queue
from threading import Timer

import pytest

from alm_pipeline.runtime.threads import in_background, results_ahead, shared_by, threads_at_once


def test_callers_share_the_threads_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6,2")
    with shared_by(2):
        assert threads_at_once() == 3
        with shared_by(7):
            assert threads_at_once() == 1
    assert threads_at_once() == 6


def test_by_default_there_is_one_thread_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_at_once() == len(os.sched_getaffinity(0))


def test_without_an_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert threads_at_once() == os.cpu_count()


def test_two_calls_run_in_the_background_and_a_third_waits_for_the_first() -> None:
    ends = [threading.Event() for _ in range(3)]
    done: list[int] = []
    started: Queue[int] = Queue()

    def work(number: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        started.put(number)
        assert ends[number].wait(60)
        done.append(number)

    with in_background(work) as call:
        call(0)
        call(1)
        assert {started.get(timeout=60), started.get(timeout=60)} == {0, 1}
        Timer(0.2, ends[0].set).start()
        call(2)
        assert done == [0]
        ends[2].set()
        Timer(0.2, ends[1].set).start()
    assert sorted(done) == [0, 1, 2]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_an_error_in_the_background_reaches_the_caller(calls: int) -> None:
    started: set[int] = set()

    def fail(number: int) -> None:
        started.add(number)
        raise ValueError(f"call {number}")

    with pytest.raises(ValueError, match="call 0"), in_background(fail) as call:  # noqa: PT012
        for number in range(calls):
            call(number)
    assert started == set(range(min(calls, 2)))


def test_the_callers_own_error_comes_first() -> None:
    def fail() -> None:
        raise ValueError("in the background")

    with pytest.raises(KeyError), in_background(fail) as call:  # noqa: PT012
        call()
        raise KeyError


def test_the_next_results_are_computed_while_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    started: list[int] = []
    event = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item == 1:
            event.set()
        return item * 10

    results = results_ahead(work, range(9))
    assert next(results) == 0
    assert event.wait(5)
    assert max(started) <= 2
    assert list(results) == [10 * item for item in range(1, 9)]
    assert list(results_ahead(work, [])) == []
