"""The jobs into which a run's work on shards is divided, and the order in which they may run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, Protocol

JobStage = Literal["tokenize teacher", "tokenize student", "align", "score"]
"""The stages that work on groups of shards; `score` only where a GPU pool scores."""

MAX_GROUPS = 120
"""per stage; with two tokenizations, alignment and scoring that is under 500 task runs per flow run"""
_SCORED_TOGETHER = 8
"""groups per scoring run of the pool, which starts a process and loads the teacher"""


def group_shards(sizes: Mapping[int, int], group_bytes: int, max_groups: int = MAX_GROUPS) -> list[tuple[int, ...]]:
    """Group neighboring shards, about `group_bytes` per group, or more if that would make too many groups.

    `sizes` are the shards' bytes of text. A group holds at least one shard.
    """
    capacity = max(group_bytes, -(-sum(sizes.values()) // max_groups))
    groups: list[list[int]] = []
    last, start = -1, 0
    for shard, size in sizes.items():
        # a shard belongs to the group that its middle is in, so that rounding never adds a group
        if (group := (start + size // 2) // capacity) != last:
            groups.append([])
            last = group
        groups[-1].append(shard)
        start += size
    return [tuple(group) for group in groups]


@dataclass(frozen=True)
class Job:
    """A stage's work on some shards."""

    stage: JobStage
    shards: tuple[int, ...]
    bytes: int
    after: frozenset["Job"] = frozenset()
    on_pool: bool = False
    """a run on the GPU pool, not a task of this flow's runner"""

    def overlaps(self, shards: Iterable[int]) -> bool:
        return not set(self.shards).isdisjoint(shards)


def plan_jobs(sizes: Mapping[int, int], missing: Mapping[JobStage, Sequence[int]], group_bytes: int) -> list[Job]:
    """Plan the jobs for the missing shards of each stage. Each job comes after those that it depends on.

    A group is aligned when both its tokenizations are done, and scored when the teacher's is. A tokenizer's first
    group comes before its others: it tests the fast engine, and a second group at the same time would repeat the test
    at the cost of a shard's time.
    """
    jobs: list[Job] = []
    tokenized: dict[JobStage, list[Job]] = {"tokenize teacher": [], "tokenize student": []}

    def add(stage: JobStage, group: Sequence[int], reads: Iterable[Job] = (), on_pool: bool = False) -> None:
        wanted = set(missing.get(stage, ()))
        if shards := tuple(shard for shard in group if shard in wanted):
            size = sum(sizes[shard] for shard in shards)
            after = [job for job in reads if job.overlaps(shards)] + tokenized.get(stage, [])[:1]
            jobs.append(Job(stage, shards, size, frozenset(after), on_pool))
            tokenized.get(stage, []).append(jobs[-1])

    prepared = {shard for stage, shards in missing.items() if stage != "score" for shard in shards}
    for group in group_shards(_select(sizes, prepared), group_bytes):
        for stage in tokenized:
            add(stage, group)
        add("align", group, [job for side in tokenized.values() for job in side[-1:]])
    for group in group_shards(_select(sizes, missing.get("score", ())), _SCORED_TOGETHER * group_bytes):
        add("score", group, tokenized["tokenize teacher"], on_pool=True)
    return jobs


def _select(sizes: Mapping[int, int], shards: Iterable[int]) -> dict[int, int]:
    return {shard: sizes[shard] for shard in sorted(shards)}


class Future(Protocol):
    """The methods that Prefect's futures and Python's own share."""

    def add_done_callback(self, fn: Callable[[Any], Any]) -> Any: ...
    def result(self) -> Any: ...


def run_jobs(
    jobs: Sequence[Job],
    submit: Callable[[Job], Future],
    limit: Callable[[Job], int],
    on_done: Callable[[Job, Any], None],
) -> None:
    """Run each job once the jobs that it depends on are done.

    At most `limit(job)` jobs of the same kind (on the pool, or not) are in flight. Raises the first error unchanged,
    and submits no job after it.
    """
    waiting, done, in_flight = list(jobs), set[Job](), list[Job]()
    finished: SimpleQueue[tuple[Job, Future]] = SimpleQueue()
    while waiting or in_flight:
        for job in list(waiting):
            if job.after <= done and sum(other.on_pool == job.on_pool for other in in_flight) < limit(job):
                waiting.remove(job)
                in_flight.append(job)
                submit(job).add_done_callback(partial(_enqueue, finished, job))
        job, future = finished.get()
        on_done(job, future.result())
        in_flight.remove(job)
        done.add(job)


def _enqueue(finished: "SimpleQueue[tuple[Job, Future]]", job: Job, future: Future) -> None:
    finished.put((job, future))
