"""Which files of a model are fetched for what."""

import fnmatch
import shutil
from pathlib import Path

import pytest

from alm_pipeline import model_files
from alm_pipeline.model_files import (
    context_length,
    load_tokenizer,
    model_folder,
    model_identity,
    tokenizer_forms,
    tokenizer_identity,
    vocabulary_rows,
)
from storage.errors import UserError

NAME = "someone/tiny-llama"


@pytest.fixture
def snapshot(tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is here of a model on the hub: a download adds to it."""
    here = tmp_path / "snapshot"
    here.mkdir()

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == NAME
        for file in Path(llama_folder).iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, here)
        return str(here)

    monkeypatch.setattr(model_files, "snapshot_download", download)
    return here


def test_who_tokenizes_fetches_no_weights(snapshot: Path, llama_folder: str) -> None:
    assert load_tokenizer(NAME)("The fox").input_ids == load_tokenizer(llama_folder)("The fox").input_ids
    assert tokenizer_identity(NAME) == tokenizer_identity(llama_folder)
    assert (vocabulary_rows(NAME), context_length(NAME)) == (
        vocabulary_rows(llama_folder),
        context_length(llama_folder),
    )
    assert tokenizer_forms(NAME) == tokenizer_forms(llama_folder)
    assert not list(snapshot.glob("*.safetensors"))
    model_folder(NAME)
    assert list(snapshot.glob("*.safetensors"))
    assert model_identity(NAME) == model_identity(llama_folder)


def test_a_folder_without_weights_has_no_identity(tmp_path: Path, llama_folder: str) -> None:
    shutil.copy(Path(llama_folder, "config.json"), tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        model_identity(str(tmp_path))
