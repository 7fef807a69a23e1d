"""One run of the stages: it plans what is missing of each stage as jobs on groups of shards, and submits them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from prefect.task_runners import TaskRunner

from alm_pipeline.runtime.progress import expect
from alm_pipeline.runtime.threads import shared_by
from flows import tasks
from flows.execution.gpu_pool import GpuPool
from flows.execution.jobs import Future, Job, JobStage, plan_jobs, run_jobs
from flows.progress_artifacts import ProgressArtifacts
from flows.stages import POOL_DEPLOYMENTS
from storage.dataset import Dataset
from storage.errors import UserError

if TYPE_CHECKING:
    from alm_pipeline.pipeline import Pipeline

_OTHER = "its machines have other model files, or another version of this project"
_TASKS_PER_WORKER = 2
"""in flight: one that the worker runs, and one that waits for it"""


@dataclass(frozen=True)
class Workers:
    """Where groups of shards are tokenized and aligned."""

    runner: TaskRunner[Any]
    count: int
    group_bytes: int


@dataclass
class AlmRun:
    """The stages of one configuration, and how many seconds of work each took."""

    pipeline: "Pipeline"
    storage: str
    parameters: Mapping[str, Any]
    """the flow's parameters for a run of it on the GPU pool"""
    seconds: dict[str, float] = field(default_factory=dict)

    def prepare(self, workers: Workers, pool: GpuPool | None) -> None:
        """Run every stage up to the alignments. Runs of the pool, where there is one, score at the same time."""
        # first, since the examples may be cut by its tokens; without a tokenizer to make, it only checks that the
        # student's model can be trained
        self._run_stage(self.pipeline.tokenizer_stage, tasks.train_tokenizer)
        for part in self._parts():
            part.prepare_source(workers, pool)

    def _parts(self) -> "list[AlmRun]":
        """Return the runs of the sources of a mixture, which count their seconds together; otherwise this one."""
        if not self.pipeline.config.is_mixture:
            return [self]
        return [
            AlmRun(part, self.storage, {**self.parameters, "source": part.name}, self.seconds)
            for part in self.pipeline.parts
        ]

    def prepare_source(self, workers: Workers, pool: GpuPool | None) -> None:
        """Run every stage of a single corpus up to the alignments, once the student's tokenizer is there."""
        self._run_stage("shard", tasks.shard)
        if jobs := self._missing_jobs(workers.group_bytes, pool):
            self._run_jobs(jobs, workers, pool)
        self._run_stage("manifests", tasks.publish_manifests)
        if self.pipeline.stored_pair_biases:
            self._run_stage("pair biases", tasks.pair_biases)

    def score(self) -> None:
        """Score what the pool has not scored; of a mixture, one source and so one teacher after another."""
        for part in self._parts():
            part._run_stage("score", tasks.score)

    def train(self, pool: GpuPool | None) -> None:
        """Train the student, here or on the pool; the machine that trains also publishes it if configured."""
        if pool:
            result = pool.submit(POOL_DEPLOYMENTS["train"], {**self.parameters, "only": "train"})
            self.seconds["train"] = result.result()
            if self.pipeline.student.is_to_be_replaced or not self.pipeline.student.manifest():
                raise UserError(f"{self.pipeline.student.url}: the pool's run completed without writing it: {_OTHER}")
        else:
            self._run_stage("train", tasks.train)
            if self.pipeline.config.publish:
                self._run_stage("publish", tasks.publish)

    def _run_stage(self, name: str | None, stage: Any) -> None:
        seconds = stage(self.pipeline, self.storage)
        if name:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _missing_jobs(self, group_bytes: int, pool: GpuPool | None) -> list[Job]:
        pipeline = self.pipeline
        sizes = [record.counts["text_bytes"] for record in pipeline.examples.complete_manifest().shards]
        datasets: dict[JobStage, Dataset] = {
            "tokenize teacher": pipeline.tokens("teacher"),
            "tokenize student": pipeline.tokens("student"),
            "align": pipeline.alignments,
        }
        if pool:
            datasets["score"] = pipeline.scores
        self.seconds |= {stage: self.seconds.get(stage, 0.0) for stage in datasets}
        missing = {
            stage: [] if dataset.manifest() else dataset.missing(range(len(sizes)))
            for stage, dataset in datasets.items()
        }
        return plan_jobs(dict(enumerate(sizes)), missing, group_bytes)

    def _run_jobs(self, jobs: list[Job], workers: Workers, pool: GpuPool | None) -> None:
        progress = _JobProgress(jobs, self.seconds)

        def limit(job: Job) -> int:
            return pool.max_runs if pool and job.on_pool else _TASKS_PER_WORKER * workers.count

        with ExitStack() as stack:
            stack.enter_context(shared_by(workers.count))  # where the workers are threads of this process
            if not all(job.on_pool for job in jobs):
                stack.enter_context(workers.runner)  # which may start a cluster
            run_jobs(jobs, lambda job: self._submit(job, workers.runner, pool), limit, progress.on_done)
        self._check_scored([shard for job in jobs if job.on_pool for shard in job.shards])

    def _submit(self, job: Job, runner: TaskRunner[Any], pool: GpuPool | None) -> Future:
        parameters: dict[str, Any]
        match job.stage:
            case "tokenize teacher":
                task, parameters = tasks.tokenize_shards, {"side": "teacher"}
            case "tokenize student":
                task, parameters = tasks.tokenize_shards, {"side": "student"}
            case "align":
                task, parameters = tasks.align_shards, {}
            case "score":
                assert pool
                shards = {"only": "score", "shards": list(job.shards)}
                return pool.submit(POOL_DEPLOYMENTS["score"], {**self.parameters, **shards})
            case _:
                assert_never(job.stage)
        parameters |= {"pipeline": self.pipeline, "storage": self.storage, "shards": job.shards}
        future: Future = runner.submit(task, parameters)
        return future

    def _check_scored(self, shards: Sequence[int]) -> None:
        if missing := self.pipeline.scores.missing(shards):
            raise UserError(
                f"{self.pipeline.scores.url}: the pool's runs completed without writing shard {missing[0]}: {_OTHER}"
            )


class _JobProgress:
    """Adds up the bytes and seconds of finished jobs by stage, and shows them as progress artifacts."""

    def __init__(self, jobs: Sequence[Job], seconds: dict[str, float]) -> None:
        self._seconds, self._done, self._artifacts = seconds, Counter[str](), ProgressArtifacts()
        self._totals = Counter[str]()
        for job in jobs:
            self._totals[job.stage] += job.bytes
        for stage, total in self._totals.items():
            self._show(stage)
            if stage != "align":  # which counts tokens
                expect(stage, total)

    def on_done(self, job: Job, seconds: float) -> None:
        self._seconds[job.stage] += seconds
        self._done[job.stage] += job.bytes
        self._show(job.stage)

    def _show(self, stage: str) -> None:
        self._artifacts.show(stage, self._done[stage], self._totals[stage], "B")
