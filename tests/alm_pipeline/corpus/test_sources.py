"""Datasets that `datasets` loads (local folders) and generated problems."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alm_pipeline.config import GeneratedSource, HubSource
from storage.errors import UserError
from tests.alm_pipeline.corpus.helpers import corpus_of, jsonl, read, texts


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_bytes(
        jsonl({"text": "one", "n": 1}, {"text": "", "n": 2}, {"text": "three", "n": 3})
    )
    return tmp_path


@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_folder(folder: Path, streaming: bool) -> None:
    documents, dropped = read(corpus_of(HubSource(name=str(folder), streaming=streaming)))
    assert [(document.id, document.text) for document in documents] == [("train:0", "one"), ("train:2", "three")]
    assert dropped == {"empty": 1}


@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_folder_of_parquet_conversations(tmp_path: Path, streaming: bool) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    pq.write_table(pa.Table.from_pylist([{"chat": messages, "other": 1}]), tmp_path / "test.parquet")
    source = HubSource(name=str(tmp_path), split="test", streaming=streaming)
    (document,), _ = read(corpus_of(source, messages="chat"))
    assert (document.id, document.messages) == ("test:0", messages)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_without_the_column(folder: Path, streaming: bool) -> None:
    with pytest.raises(UserError, match=r"dataset '.*' has no column 'body'; it has 'text', 'n'"):
        read(corpus_of(HubSource(name=str(folder), streaming=streaming), text="body"))


def test_a_split_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read dataset '.*' \(split 'dev'\): .*dev.*; check corpus\.source"):
        read(corpus_of(HubSource(name=str(folder), split="dev")))


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`datasets` cannot read dataset"):
        read(corpus_of(HubSource(name=str(tmp_path))))


@pytest.mark.bad_input
@pytest.mark.parametrize("place", ["../outside.jsonl", "{folder}/outside.jsonl", ".hidden/a.jsonl", "__x/a.jsonl"])
def test_rows_that_are_not_in_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    """Its README.md may name files anywhere, which are not hashed."""
    folder, name = tmp_path / "data", place.format(folder=tmp_path)
    folder.mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(jsonl({"text": "outside"}))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n---\n")
    with pytest.raises(UserError, match=rf"has its rows in .*{Path(name).name}, as its README.md says.*move that file"):
        read(corpus_of(HubSource(name=str(folder))))


def test_rows_that_the_readme_names_in_the_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "rows.jsonl").write_bytes(jsonl({"text": "inside"}))
    (tmp_path / "folder" / "link.jsonl").symlink_to("sub/rows.jsonl")
    (tmp_path / "link").symlink_to("folder")
    for name in ("sub/*", "link.jsonl"):
        (tmp_path / "folder" / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n---\n"
        )
        documents, _ = read(corpus_of(HubSource(name=str(tmp_path / "link"))))
        assert [document.text for document in documents] == ["inside"]


@pytest.mark.bad_input
def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl is a file: set corpus\.source\.kind to files"):
        read(corpus_of(HubSource(name=str(folder / "train.jsonl"))))


def test_a_file_that_breaks_midway(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes(jsonl({"text": "one"}) + b"{broken\n")
    with pytest.raises(UserError, match=r"`datasets` cannot read dataset"):
        read(corpus_of(HubSource(name=str(folder))))


def generated(task: str = "gsm_symbolic", **settings: Any) -> dict[str, str | None]:
    return texts(corpus_of(GeneratedSource(task=task, size=5, seed=3), **settings))


def test_generated_problems_are_the_same_each_time() -> None:
    problems = generated()
    assert list(problems) == [f"gsm_symbolic-3:{i}" for i in range(5)]
    assert generated() == problems


def test_a_problem_with_its_solution_reads_naturally() -> None:
    (text, *_) = generated().values()
    columns = zip(*(generated(text=c).values() for c in ("question", "solution", "answer")), strict=True)
    question, solution, answer = next(columns)
    assert text == f"{question}\n{solution}\nThe answer is {answer}."
    assert solution
    assert "####" not in text
    assert next(iter(generated(text="{question} = {answer}").values())) == f"{question} = {answer}"


def test_a_task_without_worked_solutions_gives_its_answers() -> None:
    assert generated("chain_sum", text="solution") == generated("chain_sum", text="answer")
    assert generated("chain_sum") == generated("chain_sum", text="{question}\n{answer}")


def test_a_task_that_does_not_exist() -> None:
    with pytest.raises(UserError, match=r"no task 'gsm_symbolik'; .*gsm_symbolic"):
        generated("gsm_symbolik")


def test_a_column_that_problems_lack() -> None:
    with pytest.raises(UserError, match=r"gsm_symbolic has no column 'body'; it has 'question'"):
        generated(text="body")


def test_the_generator_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install 'alm-pipeline\[demo\]'"):
        generated()
