"""No stage, evaluation or training reads a shard twice."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from alm_pipeline.config import AlmConfig
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.student_report import page
from storage.dataset import Dataset

Reads = Counter[tuple[str, int]]
Counting = Callable[[], AbstractContextManager[Reads]]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Return a context that counts the reads of each shard in it."""
    read_shard, counts = Dataset.read_shard, list[Reads]()

    def read(self: Dataset, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        for reads in counts:
            reads[self.name, shard] += 1
        return read_shard(self, shard, columns)

    monkeypatch.setattr(Dataset, "read_shard", read)

    @contextmanager
    def count() -> Iterator[Reads]:
        counts.append(Reads())
        yield counts[-1]
        counts.pop()

    return count


def _required(reads: Reads, *datasets: Dataset) -> None:
    shards = {(dataset.name, shard) for dataset in datasets for shard in range(len(dataset.complete_manifest().shards))}
    assert reads == dict.fromkeys(shards, 1)


def test_every_stage_reads_a_shard_once(
    config: AlmConfig, tmp_path: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "write_run_report", lambda *_, **__: None)  # it samples the first two megabytes again
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.shard()
    sides = pipeline.tokens("teacher"), pipeline.tokens("student")
    for side in ("teacher", "student"):
        with counting() as reads:
            pipeline.tokenize(side)
        _required(reads, pipeline.examples)
    with counting() as reads:
        pipeline.align()
    _required(reads, *sides)
    with counting() as reads:
        pipeline.require_examples()
    assert set(reads.values()) == {1}
    with counting() as reads:
        pipeline.score()
    _required(reads, sides[0])
    with counting() as reads:
        HeldOut.read(pipeline.caches)
    _required(reads, *pipeline.caches.values())
    with counting() as reads:
        pipeline.train()  # several epochs
    # for the evaluation and for the training, which needs only the scores of the teacher's side
    expected = {
        (dataset.name, shard): 1 if dataset is sides[0] else 2
        for dataset in pipeline.caches.values()
        for shard in range(len(dataset.complete_manifest().shards))
    }
    assert reads == expected
