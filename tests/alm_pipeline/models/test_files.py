"""Which files of a model are fetched for what, and what is read off a tokenizer's."""

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save

from alm_pipeline.models.files import model_folder
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer, load_tokenizer
from storage.errors import UserError
from tests.alm_pipeline.models import folders
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


def _other_weights(folder: str) -> bytes:
    tensors = {name: values + 1 for name, values in load_file(Path(folder) / "model.safetensors").items()}
    return save(tensors, metadata={"format": "pt"})


def test_a_branch_that_moves_after_the_model_was_named_is_not_followed(server: Hub, llama_folder: str) -> None:
    reference, named = ModelReference(NAME), ModelReference(llama_folder)
    assert reference.identity == named.identity
    server.push(model_safetensors=_other_weights(llama_folder), tokenizer_json=b"{}")
    first, expected = (model.load("float32").get_input_embeddings().weight for model in (reference, named))
    assert torch.equal(first, expected)  # type: ignore[arg-type]
    assert reference.tokenizer.identity == named.tokenizer.identity
    assert ModelReference(NAME).identity != reference.identity
    sent: ModelReference = pickle.loads(pickle.dumps(reference))
    assert (sent.revision, sent.identity) == (reference.revision, reference.identity)
    tokenizer: LoadedTokenizer = pickle.loads(pickle.dumps(reference.tokenizer))
    assert tokenizer.identity == named.tokenizer.identity


def test_a_tokenizer_of_a_branch_that_moves_is_the_same_in_another_process(server: Hub, llama_folder: str) -> None:
    tokenizer = LoadedTokenizer(NAME)
    assert tokenizer.identity
    server.push(tokenizer_json=b"{}")
    sent: LoadedTokenizer = pickle.loads(pickle.dumps(tokenizer))
    assert sent.identity == LoadedTokenizer(llama_folder).identity


def test_the_code_of_another_repository_is_pinned(server: Hub, llama_folder: str, tmp_path: Path) -> None:
    folders.coded(tmp_path)
    edit = {"auto_map": {"AutoModelForCausalLM": f"{NAME}--modeling_scaled.ScaledLlama"}}
    folders.edit_config(tmp_path, **edit)
    for name in ("modeling_scaled.py", "factor.py"):
        server.files[name] = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
    reference = ModelReference(str(tmp_path), trust_remote_code=True)
    assert reference.identity
    server.push(factor_py=b"FACTOR = 5.0\n")
    ids = torch.tensor([[5, 6, 7]])
    plain = ModelReference(str(tmp_path)).load("float32", device="cpu")(ids).logits
    assert torch.equal(reference.load("float32", device="cpu")(ids).logits, 2 * plain)
    other = ModelReference(str(tmp_path), trust_remote_code=True)
    assert other.identity != reference.identity
    assert torch.equal(other.load("float32", device="cpu")(ids).logits, 5 * plain)


def test_a_folder_without_weights_has_no_identity(tmp_path: Path, llama_folder: str) -> None:
    shutil.copy(Path(llama_folder, "config.json"), tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        _ = ModelReference(str(tmp_path)).identity


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["{}/no-such", "./no-such", "a/b/no-such", "~/no-such", "no such", "models/no-such/"])
def test_a_path_without_a_folder_is_not_looked_for_on_the_hub(name: str, tmp_path: Path) -> None:
    name = name.format(tmp_path)
    with pytest.raises(UserError, match="not a local folder, and can't be a name on the Hub") as error:
        model_folder(name)
    assert str(error.value).startswith(f"{name}: ")
    assert "repo" not in str(error.value).lower()
