"""Which files of a model are fetched for what, and what is read off a tokenizer's."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from alm_pipeline.models.files import model_folder
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer, load_tokenizer
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
    assert LoadedTokenizer(NAME).identity == LoadedTokenizer(llama_folder).identity
    assert (ModelReference(NAME).vocabulary_rows, ModelReference(NAME).context_length) == (
        ModelReference(llama_folder).vocabulary_rows,
        ModelReference(llama_folder).context_length,
    )
    assert LoadedTokenizer(NAME).forms == LoadedTokenizer(llama_folder).forms
    assert "model.safetensors" not in server.fetched
    model_folder(NAME)
    assert "model.safetensors" in server.fetched


def test_who_names_a_hubs_model_fetches_no_weights(server: Hub, llama_folder: str) -> None:
    assert ModelReference(NAME).identity == ModelReference(llama_folder).identity
    assert "config.json" in server.fetched
    assert "model.safetensors" not in server.fetched


def test_a_hubs_other_weights_are_another_model(server: Hub, llama_folder: str) -> None:
    server.files["model.safetensors"] += b"x"
    assert ModelReference(NAME).identity != ModelReference(llama_folder).identity


def test_offline_a_hubs_model_is_named_by_what_is_here(
    server: Hub, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ModelReference(NAME).identity == ModelReference(llama_folder).identity


def test_offline_without_its_weights_a_hubs_model_has_no_identity(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{NAME}: "):
        _ = ModelReference(NAME).identity


def test_while_the_hub_is_not_there_its_model_is_named_by_what_is_here(
    server: Hub, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(NAME)
    server.refuses = 503
    assert ModelReference(NAME).identity == ModelReference(llama_folder).identity
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert ModelReference(NAME).identity == ModelReference(llama_folder).identity


def test_weights_whose_hash_the_hub_does_not_tell_are_fetched(server: Hub, llama_folder: str) -> None:
    server.large = ()
    assert ModelReference(NAME).identity == ModelReference(llama_folder).identity
    assert "model.safetensors" in server.fetched


def test_a_folder_without_weights_has_no_identity(tmp_path: Path, llama_folder: str) -> None:
    shutil.copy(Path(llama_folder, "config.json"), tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        _ = ModelReference(str(tmp_path)).identity
