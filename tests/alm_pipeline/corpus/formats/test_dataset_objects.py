"""Datasets as objects: the same rows are the same corpus, whatever the object, and read once."""

import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pytest

from alm_pipeline.config import AlmConfig, CorpusConfig
from alm_pipeline.corpus import source_identity
from alm_pipeline.corpus.formats.dataset_objects import corpus_of_dataset
from alm_pipeline.pipeline import Pipeline
from storage.errors import UserError
from tests.alm_pipeline.corpus.formats.test_messages import CHAT, TURNS
from tests.alm_pipeline.corpus.helpers import corpus, read

ROWS = [{"text": f"größe {k}\n", "n": k} for k in range(2500)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))


def of(dataset: Any, **settings: Any) -> CorpusConfig:
    return corpus_of_dataset(dataset, corpus("unused.jsonl", **settings))


def generated() -> Iterator[dict[str, Any]]:
    yield from ROWS


def test_the_same_rows_are_one_corpus() -> None:
    made = datasets.Dataset.from_list(ROWS)
    features = datasets.IterableDataset.from_generator(generated, features=made.features)
    objects = [
        made,
        made.select(range(len(ROWS))),
        made.add_column("again", made["text"]).remove_columns("again"),
        made.to_iterable_dataset(num_shards=3),
        datasets.IterableDataset.from_generator(generated),
        features,
        made.with_format("numpy"),
    ]
    configs = [of(one) for one in objects]
    assert len({source_identity(config.source) for config in configs}) == 1
    found, dropped = read(configs[0])
    assert [document.text for document in found] == [row["text"] for row in ROWS]
    assert found[7].id == "rows.jsonl:7"
    assert not dropped
    others = [made.select(range(100)), made.shuffle(seed=1), made.rename_column("n", "m")]
    assert len({source_identity(of(one).source) for one in [made, *others]}) == 4


def test_a_stream_that_cannot_be_read_twice_is_read_once() -> None:
    rows = iter(ROWS)
    config = of(datasets.IterableDataset.from_generator(lambda: rows))
    assert len(read(config)[0]) == len(read(config)[0]) == len(ROWS)


def test_what_is_there_already_is_not_written_again() -> None:
    made = datasets.Dataset.from_list(ROWS)
    path = Path(of(made).source.urls[0])  # type: ignore[union-attr]
    written = path.stat()
    assert of(made).source.urls == (str(path),)  # type: ignore[union-attr]
    assert path.stat() == written
    path.write_text("damaged\n")
    assert len(read(of(made))[0]) == len(ROWS)
    assert [file.name for file in path.parents[1].iterdir()] == [path.parent.name]


def test_conversations_keep_their_form() -> None:
    turns = [*TURNS, {"from": "function_call", "value": '{"name": "now", "arguments": {}}'}]
    rows = [{"conversations": TURNS}, {"conversations": [{**turn, "more": None} for turn in turns]}]
    for one in (datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows).to_iterable_dataset()):
        (first, second), dropped = read(of(one))
        assert first.messages == CHAT
        assert second.messages
        assert second.messages[2]["tool_calls"]
        assert not dropped


def test_values_that_json_has_no_form_of() -> None:
    rows = [{"text": b"bytes", "at": datetime(2026, 1, 1), "raw": b"\xff"}, {"text": b"\xff", "at": None, "raw": b""}]
    (document,), dropped = read(of(datasets.Dataset.from_list(rows)))
    assert document.text == "bytes"
    assert dropped == {"not_text": 1}


def test_a_transform_is_applied() -> None:
    made = datasets.Dataset.from_list(ROWS[:3]).with_transform(
        lambda batch: {"text": [t.upper() for t in batch["text"]]}
    )
    assert [document.text for document in read(of(made))[0]] == [str(row["text"]).upper() for row in ROWS[:3]]


def test_the_name_is_that_of_the_dataset() -> None:
    made = datasets.Dataset.from_list(ROWS[:3])
    assert of(made).name == "dataset"
    made.info.dataset_name = "My Set!"
    assert of(made).name == "My-Set"


def test_a_pipeline_takes_a_dataset_and_resumes(config: AlmConfig, tmp_path: Path) -> None:
    made = datasets.Dataset.from_list([{"prompt": f"How much is {k}?", "completion": f" {k}."} for k in range(60)])
    first = Pipeline(config, str(tmp_path / "a"), corpus=made)
    first.shard()
    again = Pipeline(config, str(tmp_path / "a"), corpus=made.to_iterable_dataset())
    assert again.examples.name == first.examples.name
    assert again.shard() == first.examples.manifest()
    other = Pipeline(first.config, str(tmp_path / "b"))  # the configuration alone says where the rows are
    other.shard()
    assert [record.sha256 for record in other.examples.complete_manifest().shards] == [
        record.sha256 for record in first.examples.complete_manifest().shards
    ]


def broken() -> Iterator[dict[str, Any]]:
    yield ROWS[0]
    raise RuntimeError("no more")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ROWS, r"corpus is a builtins\.list, and must be a datasets\.Dataset"),
        (lambda: "texts.jsonl", r"corpus is a builtins\.str"),
        (
            lambda: datasets.DatasetDict(a=datasets.Dataset.from_list(ROWS)),
            r"splits 'a'; pass one, such as corpus\['a'\]",
        ),
        (
            lambda: datasets.IterableDataset.from_generator(broken),
            "cannot read the dataset that is the corpus.*no more",
        ),
    ],
)
def test_other_objects_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        of(make())


@pytest.mark.bad_input
def test_without_the_package_nothing_is_a_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "datasets")
    with pytest.raises(UserError, match="must be a"):
        of(ROWS)
