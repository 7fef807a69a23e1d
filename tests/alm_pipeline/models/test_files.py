"""Which files of a model are fetched for what, and what is read off a tokenizer's."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from alm_pipeline.models.files import (
    context_length,
    load_tokenizer,
    model_folder,
    model_identity,
    tokenizer_forms,
    tokenizer_identity,
    vocabulary_rows,
)
from alm_pipeline.vocabulary.text_forms import text_forms
from storage.errors import UserError
from tests.alm_pipeline.models.hub import TOKEN, Hub, hub

NAME = "someone/tiny-llama"


@pytest.fixture
def server(llama_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, and nothing of it here."""
    with hub() as here:
        here.files = {file.name: file.read_bytes() for file in Path(llama_folder).iterdir()}
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", here.endpoint)
        yield here


def test_who_tokenizes_fetches_no_weights(server: Hub, llama_folder: str) -> None:
    assert load_tokenizer(NAME)("The fox").input_ids == load_tokenizer(llama_folder)("The fox").input_ids
    assert tokenizer_identity(NAME) == tokenizer_identity(llama_folder)
    assert (vocabulary_rows(NAME), context_length(NAME)) == (
        vocabulary_rows(llama_folder),
        context_length(llama_folder),
    )
    assert tokenizer_forms(NAME) == tokenizer_forms(llama_folder)
    assert "model.safetensors" not in server.fetched
    model_folder(NAME)
    assert "model.safetensors" in server.fetched


def test_who_names_a_hubs_model_fetches_no_weights(server: Hub, llama_folder: str) -> None:
    assert model_identity(NAME) == model_identity(llama_folder)
    assert "config.json" in server.fetched
    assert "model.safetensors" not in server.fetched


def test_a_hubs_other_weights_are_another_model(server: Hub, llama_folder: str) -> None:
    server.files["model.safetensors"] += b"x"
    assert model_identity(NAME) != model_identity(llama_folder)


def test_offline_a_hubs_model_is_named_by_what_is_here(
    server: Hub, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_identity(NAME) == model_identity(llama_folder)


def test_offline_without_its_weights_a_hubs_model_has_no_identity(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{NAME}: "):
        model_identity(NAME)


def test_while_the_hub_is_not_there_its_model_is_named_by_what_is_here(
    server: Hub, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(NAME)
    server.refuses = 503
    assert model_identity(NAME) == model_identity(llama_folder)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert model_identity(NAME) == model_identity(llama_folder)


def test_weights_whose_hash_the_hub_does_not_tell_are_fetched(server: Hub, llama_folder: str) -> None:
    server.large = ()
    assert model_identity(NAME) == model_identity(llama_folder)
    assert "model.safetensors" in server.fetched


def test_a_folder_without_weights_has_no_identity(tmp_path: Path, llama_folder: str) -> None:
    shutil.copy(Path(llama_folder, "config.json"), tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        model_identity(str(tmp_path))


@pytest.mark.parametrize("first", [[], ["model"], ["normalizer", "model"]])
@pytest.mark.parametrize("indent", [None, 2])
def test_forms_are_those_of_the_whole_file(first: list[str], indent: int | None, tmp_path: Path) -> None:
    # `tokenizers` writes the model last; another program may not, or say "model" elsewhere
    lowercase, space = {"type": "Lowercase"}, {"type": "Replace", "pattern": {"String": " "}, "content": ',"model":{'}
    state = {
        "added_tokens": [{"id": 0, "content": ',"model":'}],
        "normalizer": {"type": "Sequence", "normalizers": [lowercase, space], "model": {"type": "BPE"}},
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
    state = {key: state[key] for key in [*first, *(key for key in state if key not in first)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state, indent=indent), encoding="utf-8")
    assert tokenizer_forms(str(tmp_path)) == text_forms(state["normalizer"], state["decoder"])  # type: ignore[arg-type]
    assert len(tokenizer_forms(str(tmp_path))) == 2
