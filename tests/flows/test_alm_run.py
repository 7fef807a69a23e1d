"""The jobs of a run: every stage that works on groups of shards is planned."""

from pathlib import Path
from typing import get_args

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from flows.alm_run import AlmRun
from flows.execution.gpu_pool import GpuPool
from flows.execution.jobs import JobStage


def test_every_stage_of_jobs_is_planned(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.shard()
    run = AlmRun(pipeline, str(tmp_path), {})
    with GpuPool("gpu", 1) as pool:
        assert {job.stage for job in run._missing_jobs(1024, pool)} == set(get_args(JobStage))
    assert {job.stage for job in run._missing_jobs(1024, None)} == set(get_args(JobStage)) - {"score"}
    assert set(run.seconds) == set(get_args(JobStage))
