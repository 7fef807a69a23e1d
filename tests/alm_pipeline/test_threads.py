"""How many threads each of several callers may use."""

import os

import pytest

from alm_pipeline.threads import shared_by, threads_at_once


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
