"""Which tasks the shards of a corpus make, and in which order they may run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

MOST_GROUPS = 120
"""of a stage; with two tokenizations, alignment and scoring that is under 500 task runs a flow run"""


def group_shards(sizes: Mapping[int, int], group_bytes: int, most: int = MOST_GROUPS) -> list[tuple[int, ...]]:
    """Neighboring shards in groups of about so many bytes, and of more where that would make too many groups.

    `sizes` are the shards' bytes of text. A group holds at least one shard.
    """
    room = max(group_bytes, -(-sum(sizes.values()) // most))
    groups: list[list[int]] = []
    last, start = -1, 0
    for shard, size in sizes.items():
        # by where its middle lies, so that rounding adds up to no further group
        if (group := (start + size // 2) // room) != last:
            groups.append([])
            last = group
        groups[-1].append(shard)
        start += size
    return [tuple(group) for group in groups]


@dataclass(frozen=True)
class Job:
    """A stage's work on some shards."""

    stage: str
    shards: tuple[int, ...]
    bytes: int
    after: frozenset["Job"] = frozenset()
    on_pool: bool = False
    """a run of the GPU pool's, and not a task of this flow's runner"""

    def overlaps(self, shards: Iterable[int]) -> bool:
        return not set(self.shards).isdisjoint(shards)


def plan(sizes: Mapping[int, int], missing: Mapping[str, Sequence[int]], group_bytes: int) -> list[Job]:
    """The jobs for what is missing of each stage, each behind those that it comes after.

    `missing` may hold `tokenize teacher`, `tokenize student`, `align` and, for the pool, `score`. A group is aligned
    when both its tokenizations are done, and scored when the teacher's are. A tokenizer's first group comes before its
    others: what it finds out about the fast engine, two at once would both spend a shard's time on.
    """
    jobs: list[Job] = []
    encoded: dict[str, list[Job]] = {"tokenize teacher": [], "tokenize student": []}

    def add(stage: str, group: Sequence[int], reads: Iterable[Job] = (), on_pool: bool = False) -> None:
        wanted = set(missing.get(stage, ()))
        if shards := tuple(shard for shard in group if shard in wanted):
            size = sum(sizes[shard] for shard in shards)
            after = [job for job in reads if job.overlaps(shards)] + encoded.get(stage, [])[:1]
            jobs.append(Job(stage, shards, size, frozenset(after), on_pool))
            encoded.get(stage, []).append(jobs[-1])

    prepared = {shard for stage, shards in missing.items() if stage != "score" for shard in shards}
    for group in group_shards(_only(sizes, prepared), group_bytes):
        for stage in encoded:
            add(stage, group)
        add("align", group, [job for each in encoded.values() for job in each[-1:]])
    # a run of the pool's starts a process and loads the teacher
    for group in group_shards(_only(sizes, missing.get("score", ())), _SCORED_AT_ONCE * group_bytes):
        add("score", group, encoded["tokenize teacher"], on_pool=True)
    return jobs


_SCORED_AT_ONCE = 8


def _only(sizes: Mapping[int, int], shards: Iterable[int]) -> dict[int, int]:
    return {shard: sizes[shard] for shard in sorted(shards)}


class Future(Protocol):
    """What Prefect's futures and Python's own have in common."""

    def add_done_callback(self, fn: Callable[[Any], Any]) -> Any: ...
    def result(self) -> Any: ...


def run_jobs(
    jobs: Sequence[Job],
    submit: Callable[[Job], Future],
    at_once: Callable[[Job], int],
    on_done: Callable[[Job, Any], None],
) -> None:
    """Run jobs as soon as those are done that they come after; of its kind, only so many are in flight `at_once`.

    Raises the first error as it is; no job is submitted after that.
    """
    waiting, done = list(jobs), set[Job]()
    flying: list[Job] = []
    finished: SimpleQueue[tuple[Job, Future]] = SimpleQueue()
    while waiting or flying:
        for job in list(waiting):
            if job.after <= done and sum(other.on_pool == job.on_pool for other in flying) < at_once(job):
                waiting.remove(job)
                flying.append(job)
                future = submit(job)
                future.add_done_callback(partial(_put, finished, job))
        job, future = finished.get()
        on_done(job, future.result())
        flying.remove(job)
        done.add(job)


def _put(finished: "SimpleQueue[tuple[Job, Future]]", job: Job, future: Future) -> None:
    finished.put((job, future))
