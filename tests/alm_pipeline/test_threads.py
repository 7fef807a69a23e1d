"""How many threads each of several callers may use, and calls in the background."""

import os
import threading

import pytest

from alm_pipeline.threads import in_background, shared_by, threads_at_once


def test_callers_share_what_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6,2")
    with shared_by(2):
        assert threads_at_once() == 3
        with shared_by(7):
            assert threads_at_once() == 1
    assert threads_at_once() == 6


def test_without_a_number_there_is_a_thread_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_at_once() == len(os.sched_getaffinity(0))


def test_calls_in_the_background_are_done_in_turn_and_before_the_end() -> None:
    done, go_on = [], threading.Event()

    def work(name: str) -> None:
        assert go_on.wait(60)
        done.append((name, threading.current_thread() is threading.main_thread()))

    with in_background(work) as call:
        call("first")
        assert not done
        go_on.set()
        call("second")
        assert done[0] == ("first", False)
    assert done == [("first", False), ("second", False)]


@pytest.mark.parametrize("calls", [1, 2])
def test_an_error_in_the_background_is_the_callers(calls: int) -> None:
    started = []

    def fail(number: int) -> None:
        started.append(number)
        raise ValueError(f"call {number}")

    with pytest.raises(ValueError, match="call 0"), in_background(fail) as call:  # noqa: PT012
        for number in range(calls):
            call(number)
    assert started == [0]


def test_the_callers_own_error_comes_first() -> None:
    def fail() -> None:
        raise ValueError("in the background")

    with pytest.raises(KeyError), in_background(fail) as call:  # noqa: PT012
        call()
        raise KeyError
