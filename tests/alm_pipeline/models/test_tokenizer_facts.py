"""What a machine has recorded of a tokenizer is what a process finds out that loads it, and no longer than it is so."""

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from alm_pipeline.models import tokenizer as tokenizer_module
from alm_pipeline.models import tokenizer_facts
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS, random_texts
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from alm_pipeline.vocabulary import view_file
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.models.opened import opened_files
from tests.alm_pipeline.vocabulary.test_view_file import assert_same_view
from tests.real_tokenizers import REAL_TOKENIZERS, require, tokenizer_folder

TEXTS = (*ADVERSARIAL_TEXTS, *random_texts(3, 50), "<|im_start|>fox<|im_end|>")
_NONE_IS_RECORDED = 2**63


@dataclass(frozen=True)
class Machine:
    """A cache folder, and what happens where there is none."""

    cache: Path
    patch: pytest.MonkeyPatch

    def forget_process(self) -> None:
        """Let the next tokenizer find what one in another process would."""
        self.patch.setattr(view_file, "_views", {})

    def without_records(self, folder: str, template: TemplateChoice | None = None) -> LoadedTokenizer:
        self.forget_process()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer_module, "_BYTES_WORTH_RECORDING", _NONE_IS_RECORDED)
            tokenizer = LoadedTokenizer(folder, template=template)
            _ = tokenizer._is_recorded, tokenizer.fast, tokenizer.identity, tokenizer.view
        return tokenizer

    def recorded(self, folder: str, template: TemplateChoice | None = None) -> LoadedTokenizer:
        """Return a tokenizer of a process after one that has recorded it."""
        self.forget_process()
        first = LoadedTokenizer(folder)
        _ = first.identity, first.view
        self.forget_process()
        return LoadedTokenizer(folder, template=template)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenizer_module, "_BYTES_WORTH_RECORDING", 0)
    return Machine(tmp_path / "cache", monkeypatch)


@pytest.fixture
def folder(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    byte_level.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def _refuse_loading(patch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the tokenizer was loaded")

    patch.setattr(PreTrainedTokenizerFast, "from_pretrained", load)


def _assert_same(recorded: LoadedTokenizer, expected: LoadedTokenizer) -> None:
    for name in ("identity", "highest_id", "frame", "forms", "chat_template", "template_without_arguments"):
        assert getattr(recorded, name) == getattr(expected, name), name
    assert_same_view(recorded.view, expected.view)
    assert recorded.encoding_backend.to_str() == expected.encoding_backend.to_str()
    for literals in (False, True):
        engines = (StandardEngine(each.encoding_backend) for each in (recorded, expected))
        ids, expected_ids = (engine.encode(TEXTS, special_literals=literals) for engine in engines)
        assert ids.first_difference(expected_ids) is None
    batch, expected_batch = (ByteEncoder(each).encode(TEXTS[:40]) for each in (recorded, expected))
    np.testing.assert_array_equal(batch.token_ids, expected_batch.token_ids)
    np.testing.assert_array_equal(batch.byte_lengths, expected_batch.byte_lengths)
    assert batch.dropped == expected_batch.dropped


@pytest.mark.parametrize("make", [tiny.byte_level_tokenizer, tiny.sentencepiece_tokenizer])
def test_what_is_recorded_is_what_is_loaded(make: Callable[[], Any], machine: Machine, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "made")
    expected = machine.without_records(str(tmp_path / "made"))
    recorded = machine.recorded(str(tmp_path / "made"))
    with pytest.MonkeyPatch.context() as patch:
        _refuse_loading(patch)
        _assert_same(recorded, expected)
        pickle.loads(pickle.dumps(recorded)).check_unchanged()
    assert recorded.saved_identity == expected.saved_identity
    recorded.check_unchanged()


_IN_EVERY_RUN = ("smollm2", "mistral_7b")


@pytest.fixture(
    params=[name if name in _IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.long) for name in REAL_TOKENIZERS]
)
def real_folder(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(tokenizer_folder(request.param))


def test_what_is_recorded_of_a_real_tokenizer_is_what_is_loaded(real_folder: str, machine: Machine) -> None:
    expected = machine.without_records(real_folder)
    recorded = machine.recorded(real_folder)
    with pytest.MonkeyPatch.context() as patch:
        _refuse_loading(patch)
        _assert_same(recorded, expected)


def test_another_template_gives_the_identity_that_it_has_without_records(machine: Machine, folder: Path) -> None:
    (folder.parent / "mine.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    choice = TemplateChoice("teacher_template", str(folder.parent / "mine.jinja"))
    expected = machine.without_records(str(folder), choice)
    recorded = machine.recorded(str(folder), choice)
    with pytest.MonkeyPatch.context() as patch:
        _refuse_loading(patch)
        own = LoadedTokenizer(str(folder))
        derived = own.with_template(choice)
        assert recorded.identity == expected.identity == derived.identity != own.identity
        assert recorded.view is derived.view
    assert derived.fast.chat_template == derived.chat_template == expected.fast.chat_template


def _damage_all(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(cache: Path) -> None:
        for file in sorted((cache / "derived").iterdir()):
            change(file)

    return damage


def _swap(cache: Path) -> None:
    """Give every file the content of another one."""
    files = sorted((cache / "derived").iterdir())
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, [*contents[1:], contents[0]], strict=True):
        file.write_bytes(content)


def _make_unwritable(cache: Path) -> None:
    shutil.rmtree(cache)
    cache.write_text("a file")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_damage_all(lambda file: file.write_bytes(file.read_bytes()[:-3])), id="truncated"),
        pytest.param(_damage_all(lambda file: file.write_bytes(b"{}")), id="foreign"),
        pytest.param(_damage_all(lambda file: file.write_bytes(file.read_bytes().swapcase())), id="damaged"),
        pytest.param(_damage_all(Path.unlink), id="removed"),
        pytest.param(lambda cache: next((cache / "derived").glob("*.npz")).unlink(), id="without the view"),
        pytest.param(_swap, id="swapped"),
        pytest.param(_make_unwritable, id="unwritable"),
    ],
)
def test_damaged_records_are_as_none(machine: Machine, folder: Path, damage: Callable[[Path], None]) -> None:
    expected = machine.without_records(str(folder))
    recorded = machine.recorded(str(folder))
    damage(machine.cache)
    _assert_same(recorded, expected)


def _put_back(file: Path, content: str) -> None:
    """Write a file in place, and set its time back."""
    before = file.stat()
    file.write_text(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_an_edit_that_keeps_size_and_time_is_noticed(machine: Machine, folder: Path) -> None:
    before = machine.recorded(str(folder)).identity
    file = folder / "tokenizer.json"
    text = file.read_text()
    assert '"special":true' in text.replace(" ", "")
    _put_back(file, text.replace("<|im_end|>", "<|im_eND|>"))
    after, expected = machine.recorded(str(folder)), machine.without_records(str(folder))
    assert after.identity == expected.identity != before
    assert b"<|im_eND|>" in after.view.spelling


@pytest.mark.bad_input
def test_files_that_change_between_the_record_and_loading_are_an_error(machine: Machine, folder: Path) -> None:
    tokenizer = machine.recorded(str(folder))
    _ = tokenizer.identity
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|im_end|>", "<|im_eND|>"))
    with pytest.raises(UserError, match=r"tokenizer\.json: was changed while it was in use"):
        _ = tokenizer.fast


def test_files_that_are_written_otherwise_before_loading_are_no_error(machine: Machine, folder: Path) -> None:
    tokenizer = machine.recorded(str(folder))
    _ = tokenizer.identity
    file = folder / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert tokenizer.fast.chat_template == tokenizer.chat_template
    tokenizer.check_unchanged()


def test_loading_reads_no_file_that_is_not_hashed(machine: Machine, folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages[0]['content'] }}")
    others = ("tokenizer.model", "vocab.txt", "merges.txt", "tekken.json", "README.md", "config.json")
    for name in others:
        (folder / name).write_text("{}")
    with opened_files(folder) as opened:
        _ = LoadedTokenizer(str(folder)).fast
    assert opened <= tokenizer_module._small_files(folder).keys()
    assert "tokenizer.json" in opened


def test_other_versions_have_records_of_their_own(machine: Machine, folder: Path) -> None:
    machine.recorded(str(folder))
    hashes = LoadedTokenizer(str(folder))._files.hashes
    assert tokenizer_facts.recorded_facts(hashes)
    machine.patch.setattr(tokenizer_facts, "_circumstances", lambda: {"transformers": "other"})
    assert tokenizer_facts.recorded_facts(hashes) is None


def test_small_vocabularies_are_not_recorded(machine: Machine, folder: Path) -> None:
    machine.without_records(str(folder))
    assert not machine.cache.exists()
