"""One run of the stages: what is missing of each is planned as jobs on groups of shards, and given out."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect.task_runners import TaskRunner

from alm_pipeline.runtime.threads import shared_by
from flows import tasks
from flows.gpu_pool import GpuPool
from flows.jobs import Future, Job, plan, run_jobs
from flows.progress_artifacts import ProgressArtifacts
from storage.errors import UserError

if TYPE_CHECKING:
    from alm_pipeline.pipeline import Pipeline

SCORE, TRAIN = "alm/score", "alm/train"
_OTHER = "its machines have other model files, or another version of this project"
_TASKS_A_WORKER = 2
"""in flight: one that it works on, and one that waits for it"""


@dataclass
class Run:
    """The stages of one configuration, and how many seconds of work each took."""

    pipeline: "Pipeline"
    storage: str
    parameters: Mapping[str, Any]
    """of the flow, for a run of it on the GPU pool"""
    seconds: dict[str, float] = field(default_factory=dict)

    def prepare(self, runner: TaskRunner[Any], workers: int, group_bytes: int, pool: GpuPool | None) -> None:
        """Everything up to the alignments; where there is a pool, its runs score meanwhile."""
        self._do("shard", tasks.shard)
        self._do("train tokenizer", tasks.train_tokenizer)
        if jobs := self._missing_jobs(group_bytes, pool):
            self._run_jobs(jobs, runner, workers, pool)
        self._do("manifests", tasks.publish_manifests)
        if self.pipeline.stored_pair_biases:
            self._do("pair biases", tasks.pair_biases)

    def score(self) -> None:
        """What the pool has not scored."""
        self._do("score", tasks.score)

    def train(self, pool: GpuPool | None) -> None:
        """Train the student, here or on the pool, and publish it from there where the configuration asks for it."""
        if pool:
            self.seconds["train"] = pool.submit(TRAIN, {**self.parameters, "only": "train"}).result()
            if not self.pipeline.student.manifest():
                raise UserError(f"{self.pipeline.student.url}: the pool's run completed without writing it: {_OTHER}")
        else:
            self._do("train", tasks.train)
            if self.pipeline.config.publish:
                self._do("publish", tasks.publish)

    def _do(self, name: str, stage: Any) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + stage(self.pipeline, self.storage)

    def _missing_jobs(self, group_bytes: int, pool: GpuPool | None) -> list[Job]:
        pipeline = self.pipeline
        sizes = [record.counts["text_bytes"] for record in pipeline.examples.complete_manifest().shards]
        datasets = {
            "tokenize teacher": pipeline.tokens("teacher"),
            "tokenize student": pipeline.tokens("student"),
            "align": pipeline.alignments,
            **({"score": pipeline.scores} if pool else {}),
        }
        self.seconds |= dict.fromkeys(datasets, 0.0)
        missing = {
            name: [] if dataset.manifest() else dataset.missing(range(len(sizes))) for name, dataset in datasets.items()
        }
        return plan(dict(enumerate(sizes)), missing, group_bytes)

    def _run_jobs(self, jobs: list[Job], runner: TaskRunner[Any], workers: int, pool: GpuPool | None) -> None:
        done, artifacts = Counter[str](), ProgressArtifacts()
        totals = {job.stage: sum(each.bytes for each in jobs if each.stage == job.stage) for job in jobs}
        for stage, total in totals.items():
            artifacts.show(stage, 0, total, "B")

        def on_done(job: Job, seconds: float) -> None:
            self.seconds[job.stage] += seconds
            done[job.stage] += job.bytes
            artifacts.show(job.stage, done[job.stage], totals[job.stage], "B")

        def submit(job: Job) -> Future:
            if job.on_pool:
                assert pool
                return pool.submit(SCORE, {**self.parameters, "only": "score", "shards": list(job.shards)})
            return self._submit(job, runner)

        def at_once(job: Job) -> int:
            return pool.runs_at_once if pool and job.on_pool else _TASKS_A_WORKER * workers

        with ExitStack() as stack:
            stack.enter_context(shared_by(workers))  # where they are threads of this process
            if not all(job.on_pool for job in jobs):
                stack.enter_context(runner)  # which may start a cluster
            run_jobs(jobs, submit, at_once, on_done)
        scored = [shard for job in jobs if job.on_pool for shard in job.shards]
        if left := self.pipeline.scores.missing(scored):
            raise UserError(f"{self.pipeline.scores.url}: the pool's runs completed without shard {left[0]}: {_OTHER}")

    def _submit(self, job: Job, runner: TaskRunner[Any]) -> Future:
        task, given = tasks.align_shards, {}
        if job.stage != "align":
            task, given = tasks.tokenize_shards, {"side": job.stage.removeprefix("tokenize ")}
        future: Future = runner.submit(
            task, {"pipeline": self.pipeline, "storage": self.storage, "shards": job.shards, **given}
        )
        return future
