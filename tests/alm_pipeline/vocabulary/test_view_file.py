"""A byte view that was read from its file is the one that was derived, in every respect."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from alm_pipeline.vocabulary import view_file
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view
from alm_pipeline.vocabulary.view_file import shared_view, view_bytes, view_from_bytes
from tests import tiny


def assert_same_view(view: ByteView, expected: ByteView) -> None:
    for field in fields(ByteView):
        value, right = getattr(view, field.name), getattr(expected, field.name)
        assert type(value) is type(right), field.name
        if isinstance(value, np.ndarray):
            assert value.dtype == right.dtype, field.name
            np.testing.assert_array_equal(value, right)
        else:
            assert value == right, field.name
    for name in ("letters", "starts"):  # compiled code takes them
        value, right = getattr(view, name), getattr(expected, name)
        np.testing.assert_array_equal(value, right)
        assert (value.dtype, value.flags.writeable) == (right.dtype, right.flags.writeable) or not len(value)


@pytest.fixture(params=["byte_level", "sentencepiece", "empty"])
def tokenizer(request: pytest.FixtureRequest, byte_level: PreTrainedTokenizerFast) -> Tokenizer:
    match request.param:
        case "byte_level":
            return byte_level.backend_tokenizer
        case "sentencepiece":
            return tiny.sentencepiece_tokenizer().backend_tokenizer
        case _:
            return Tokenizer(models.BPE())


def test_a_view_is_the_same_from_its_file(tokenizer: Tokenizer) -> None:
    view = byte_view(tokenizer)
    assert_same_view(view_from_bytes(memoryview(view_bytes(view))), view)


def test_a_process_has_one_view_of_a_definition_and_a_machine_derives_it_once(
    byte_level: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path))
    derived: list[int] = []

    def derive() -> Tokenizer:
        derived.append(1)
        return byte_level.backend_tokenizer

    views = [shared_view("a definition", derive, on_disk=True) for _ in range(2)]
    assert views[0] is views[1]
    assert len(derived) == 1
    monkeypatch.setattr(view_file, "_views", {})  # as in another process
    assert_same_view(shared_view("a definition", derive, on_disk=True), views[0])
    assert len(derived) == 1
    monkeypatch.setattr(view_file, "_views", {})
    assert_same_view(shared_view("a definition", derive, on_disk=False), views[0])
    assert len(derived) == 2
    monkeypatch.setattr(view_file, "_views", {})
    monkeypatch.setattr(view_file, "_circumstances", lambda: {"code": "other"})
    shared_view("a definition", derive, on_disk=True)
    assert len(derived) == 3, "a view of other code was taken"
