"""Folders of `save_to_disk`, named as files or as a dataset: their rows, and each damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from alm_pipeline.config import CorpusConfig, HubSource
from alm_pipeline.corpus import source_identity
from storage.errors import UserError
from tests.alm_pipeline.corpus.helpers import corpus, corpus_of, read

TEXTS = [f"text {k}" for k in range(7)]


def save(folder: Path, shards: int = 1) -> Path:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder, num_shards=shards)
    return folder


def save_splits(folder: Path, *splits: str) -> Path:
    rows = {split: datasets.Dataset.from_dict({"text": [split]}) for split in splits}
    datasets.DatasetDict(rows).save_to_disk(folder)
    return folder


def texts(config: CorpusConfig) -> list[str | None]:
    return [document.text for document in read(config)[0]]


def hub(folder: Path, split: str = "train") -> CorpusConfig:
    return corpus_of(HubSource(name=str(folder), split=split))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_dataset_is_read_by_the_name_of_its_folder(tmp_path: Path, shards: int) -> None:
    folder = save(tmp_path / "saved", shards)
    (folder / "cache-0123456789abcdef.arrow").write_bytes((folder / f"data-00000-of-0000{shards}.arrow").read_bytes())
    configs = [corpus(folder), corpus(f"{folder}/"), corpus(f"file://{folder}"), hub(folder)]
    assert [texts(config) for config in configs] == [TEXTS] * 4
    assert len({source_identity(config.source) for config in [*configs, corpus(folder / "**")]}) == 1


def test_of_several_splits_one_is_read(tmp_path: Path) -> None:
    folder = save_splits(tmp_path / "saved", "train", "test")
    assert texts(corpus(folder / "test")) == ["test"]
    assert [texts(hub(folder, split)) for split in ("train", "test")] == [["train"], ["test"]]
    assert texts(corpus(save_splits(tmp_path / "one", "validation"))) == ["validation"]


def remove_rows(folder: Path) -> None:
    (folder / "data-00000-of-00001.arrow").unlink()


def write_state(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "state.json").write_text(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rows": (remove_rows, r"data-00000-of-00001\.arrow is missing, which state\.json names"),
    "json": (write_state("{"), r"cannot read .*state\.json"),
    "no files": (write_state("{}"), r"cannot read .*state\.json"),
    "not a list": (write_state('{"_data_files": 5}'), r"_data_files is not a list"),
    "empty": (write_state('{"_data_files": []}'), "names no files of rows"),
    "elsewhere": (write_state(json.dumps({"_data_files": [{"filename": "../x.arrow"}]})), "names no files of rows"),
    "nulls": (write_state('{"_data_files": [null, {}]}'), "names no files of rows"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    make, message = DAMAGES[damage]
    make(folder := save(tmp_path / "saved"))
    for config in (corpus(folder), hub(folder)):
        with pytest.raises(UserError, match=message):
            read(config)


@pytest.mark.bad_input
def test_a_split_has_to_be_named(tmp_path: Path) -> None:
    folder = save_splits(tmp_path / "saved", "train", "test")
    with pytest.raises(
        UserError, match=r"several splits \('train', 'test'\); name the folder of one, such as .*/train"
    ):
        read(corpus(folder))
    with pytest.raises(UserError, match="and none is 'dev'"):
        read(hub(folder, "dev"))
    (folder / "test" / "state.json").unlink()
    with pytest.raises(UserError, match=r"test has no state\.json"):
        read(hub(folder, "test"))


@pytest.mark.bad_input
def test_another_folder_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; write .*/\*\* for all files in it"):
        read(corpus(tmp_path))
