"""One loaded tokenizer: what it knows, what it leaves alone, and what another process gets of it."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.vocabulary.byte_view import byte_view
from storage.errors import UserError


def test_everything_is_made_once(llama_folder: str) -> None:
    tokenizer = LoadedTokenizer(llama_folder)
    for name in ("fast", "view", "template", "encoding_backend", "forms", "frame", "boundary_ids"):
        assert getattr(tokenizer, name) is getattr(tokenizer, name)
    assert tokenizer.view.spelling == byte_view(tokenizer.fast.backend_tokenizer).spelling
    mask = tokenizer.view.boundary(tokenizer.view.size)
    assert np.flatnonzero(mask).tolist() == tokenizer.boundary_ids.tolist()


def test_one_in_memory_is_named_as_its_files_are(llama_folder: str) -> None:
    tokenizer = LoadedTokenizer(llama_folder)
    assert tokenizer.label == "tiny-llama"
    in_memory = LoadedTokenizer.of(tokenizer.fast)
    assert (in_memory.identity, in_memory.forms) == (tokenizer.identity, tokenizer.forms)


def test_saved_truncation_does_not_reach_the_encoding_and_stays_in_the_tokenizer(llama_folder: str) -> None:
    fast = LoadedTokenizer(llama_folder).fast
    fast.backend_tokenizer.enable_truncation(2)
    fast.backend_tokenizer.enable_padding(length=9)
    tokenizer = LoadedTokenizer.of(fast)
    text = "The quick brown fox jumps"
    assert len(tokenizer.encoding_backend.encode(text).ids) == len(LoadedTokenizer(llama_folder).fast(text).input_ids)
    assert fast.backend_tokenizer.truncation["max_length"] == 2
    assert fast.backend_tokenizer.padding["length"] == 9


def test_another_process_loads_it_itself_and_sees_other_files(llama_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(llama_folder, folder)
    tokenizer = LoadedTokenizer(str(folder))
    assert tokenizer.fast
    identity = tokenizer.identity
    sent = pickle.dumps(tokenizer)
    assert len(sent) < 1000
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["model"]["merges"].pop()
    file.write_text(json.dumps(state), encoding="utf-8")
    received: LoadedTokenizer = pickle.loads(sent)
    assert received.identity != identity == tokenizer.identity


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        _ = LoadedTokenizer(str(tmp_path)).fast
