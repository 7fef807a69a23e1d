"""The held-out examples are read once, and so are the tokenizers of a whole run."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from alm_pipeline.config import AlmConfig, EvaluationConfig
from alm_pipeline.evaluation.held_out import COLUMNS, HeldOut
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.stage import train as train_student
from storage.columns import list_rows
from storage.dataset import Dataset


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each shard of each dataset was read."""
    counts: Counter[tuple[str, int]] = Counter()
    read_shard = Dataset.read_shard

    def counted(self: Dataset, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        counts[self.name, shard] += 1
        return read_shard(self, shard, columns)

    monkeypatch.setattr(Dataset, "read_shard", counted)
    return counts


def test_a_distillation_reads_its_held_out_examples_once(
    config: AlmConfig, tmp_path: Path, reads: Counter[tuple[str, int]]
) -> None:
    evaluation = EvaluationConfig(steps=1, max_examples=3, samples=1, sample_tokens=4)
    train = config.train.model_copy(update={"steps": 0})
    pipeline = Pipeline(config.model_copy(update={"train": train, "evaluation": evaluation}), str(tmp_path))
    pipeline.cache()
    reads.clear()
    train_student(pipeline.distillation, pipeline.student)  # without the run's report
    shards = len(pipeline.examples.complete_manifest().shards)
    assert shards > 1
    assert reads == {(dataset.name, shard): 1 for dataset in pipeline.caches.values() for shard in range(shards)}


def test_a_run_loads_each_tokenizer_once(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: Counter[str] = Counter()
    load = PreTrainedTokenizerFast.from_pretrained

    def counted(folder: Any, *arguments: Any, **settings: Any) -> Any:
        loads[str(folder)] += 1
        return load(folder, *arguments, **settings)

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", counted)
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.run()
    # the model card tries out the saved student's, by its own class and by AutoTokenizer
    assert loads == {config.teacher: 1, config.student.model: 1, str(pipeline.student.path): 2}


def test_held_out_examples_are_those_of_both_sides(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    held_out = HeldOut.read(pipeline.caches)
    expected = []
    for shard in range(len(pipeline.examples.complete_manifest().shards)):
        examples = pipeline.examples.read_shard(shard).to_pylist()
        tokens = list_rows(pipeline.tokens("student").read_shard(shard)["token_ids"])
        chunks = list_rows(pipeline.alignments.read_shard(shard)["kinds"])
        rows = zip(examples, tokens, chunks, strict=True)
        expected += [(row["id"], ids.tolist()) for row, ids, kinds in rows if row["split"] == "held_out" and len(kinds)]
    assert expected
    ids = held_out.drawn["examples"]["id"].to_pylist()
    assert list(zip(ids, (row.tolist() for row in held_out.student.ids), strict=True)) == expected
    assert all(table.num_rows == len(held_out) for table in held_out.drawn.values())
    assert set(held_out.drawn) == set(COLUMNS)
