"""Groups of shards, the jobs that they make, and the order in which the jobs run."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.execution.jobs import MAX_GROUPS, Job, JobStage, group_shards, plan_jobs, run_jobs

STAGES: tuple[JobStage, ...] = get_args(JobStage)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200), st.integers(1, 9))
def test_groups_hold_every_shard_once_in_order(sizes: list[int], group_bytes: int, most: int) -> None:
    groups = group_shards(dict(enumerate(sizes)), group_bytes, most)
    assert [shard for group in groups for shard in group] == list(range(len(sizes)))
    assert all(groups)
    assert len(groups) <= most + 1
    capacity = max(group_bytes, -(-sum(sizes) // most))
    # shards are not cut: half of the first and of the last may be outside
    assert all(sum(sizes[shard] for shard in group) < capacity + max(sizes) for group in groups)


def test_ten_thousand_shards_make_under_five_hundred_jobs() -> None:
    everything = dict.fromkeys(STAGES, range(10_000))
    jobs = plan_jobs(dict.fromkeys(range(10_000), 32 * 2**20), everything, 64 * 2**20)
    assert 3 * MAX_GROUPS <= len(jobs) < 500
    for stage in STAGES:
        assert [shard for job in jobs if job.stage == stage for shard in job.shards] == list(range(10_000))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 200), st.randoms(use_true_random=False))
def test_a_job_comes_after_all_that_it_reads(sizes: list[int], group_bytes: int, chance: random.Random) -> None:
    shards = range(len(sizes))
    missing = {stage: [shard for shard in shards if chance.random() < 0.6] for stage in STAGES}
    jobs = plan_jobs(dict(enumerate(sizes)), missing, group_bytes)
    for stage in STAGES:
        assert [shard for job in jobs if job.stage == stage for shard in job.shards] == missing[stage]
    reads = {"align": {"tokenize teacher", "tokenize student"}, "score": {"tokenize teacher"}}
    for job in jobs:
        wanted = {other for other in jobs if other.stage in reads.get(job.stage, ()) and other.overlaps(job.shards)}
        # a tokenizer's first group tests the fast engine for the others
        first = [other for other in jobs if other.stage == job.stage][:1] if job.stage.startswith("tokenize") else []
        assert job.after == wanted | (set(first) - {job})


class Workers:
    """Submits jobs to threads, and counts those in flight."""

    def __init__(self, pool: ThreadPoolExecutor, failing: str = "") -> None:
        self.pool, self.failing = pool, failing
        self.lock, self.in_flight, self.max_in_flight, self.done = threading.Lock(), 0, 0, list[Job]()

    def submit(self, job: Job) -> "Future[Job]":
        assert job.after <= set(self.done)
        with self.lock:
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        return self.pool.submit(self.work, job)

    def work(self, job: Job) -> Job:
        if job.stage == self.failing:
            raise ValueError(job.stage)
        return job

    def on_done(self, job: Job, result: Job) -> None:
        with self.lock:
            self.in_flight -= 1
        assert job is result
        self.done.append(job)


@contextmanager
def workers(failing: str = "") -> Iterator[Workers]:
    with ThreadPoolExecutor(4) as pool:
        yield Workers(pool, failing)


def jobs_of(shards: int) -> list[Job]:
    return plan_jobs(dict.fromkeys(range(shards), 10), dict.fromkeys(STAGES[:3], range(shards)), 10)


def test_jobs_run_in_their_order_and_not_too_many_at_once() -> None:
    jobs = jobs_of(20)
    with workers() as threads:
        run_jobs(jobs, threads.submit, lambda _: 3, threads.on_done)
    assert sorted(map(id, threads.done)) == sorted(map(id, jobs))
    assert threads.max_in_flight <= 3


def test_nothing_is_submitted_after_a_failure() -> None:
    with workers("align") as threads, pytest.raises(ValueError, match="align"):
        run_jobs(jobs_of(20), threads.submit, lambda _: 3, threads.on_done)
    assert all(job.stage != "align" for job in threads.done)
    assert len(threads.done) < 20
