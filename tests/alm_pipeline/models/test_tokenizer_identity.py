"""A tokenizer's identity is that of what is loaded: each file is edited, and compared with what it then does."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.models import tokenizer as tokenizer_module
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.engines.standard import StandardEngine
from storage.errors import UserError
from tests import tiny

Edit = Callable[[Path], object]
_TEXTS = [*tiny.TEXTS, "<|im_start|>fox<|im_end|> <new> dog", " the  the", "fox <|im_end|>", "10 2012 4848"]
_CHAT = [{"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "3"}]
_UNREAD = ("README.md", "LICENSE", "config.json", "generation_config.json", "vocab.json", "merges.txt", "other.json")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "original"
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools: {{ messages[0]['content'] }}")
    for name in _UNREAD:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Record small tokenizers too, so that these tests hold for what later processes find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_BYTES_WORTH_RECORDING", 0)
        patch.setenv("ALM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "tokenizer")


def _behavior(tokenizer: LoadedTokenizer) -> Any:
    """The ids of texts, with and without special tokens' literals, the frame, the roles, and renderings."""
    engine, fast = StandardEngine(tokenizer.encoding_backend), tokenizer.fast
    ids = [engine.encode(_TEXTS, special_literals=literals).lists() for literals in (False, True)]
    templates = sorted(fast.chat_template) if isinstance(fast.chat_template, dict) else [None]
    chats = [fast.apply_chat_template(_CHAT, chat_template=name, tokenize=False) for name in templates]
    return ids, tokenizer.frame, fast.special_tokens_map, chats, tokenizer.view.special.tolist()


def _json(file: str, change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        values = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).exists() else {}
        change(values)
        (folder / file).write_text(json.dumps(values), encoding="utf-8")

    return edit


def _sort(file: str) -> Edit:
    def edit(folder: Path) -> None:
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(values, indent=7, sort_keys=True), encoding="utf-8")

    return edit


def _text(file: str, text: str) -> Edit:
    return lambda folder: (folder / file).write_text(text, encoding="utf-8")


def _merges_as_strings(values: dict[str, Any]) -> None:
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]


_TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
_PADDING = {
    "strategy": {"Fixed": 9},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
_FRAMED = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
}
_NEW = {"id": 400, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

SAME: dict[str, Edit] = {
    "tokenizer.json written otherwise": _sort("tokenizer.json"),
    "merges as strings": _json("tokenizer.json", _merges_as_strings),
    "truncation": _json("tokenizer.json", lambda values: values.update(truncation=_TRUNCATION)),
    "padding": _json("tokenizer.json", lambda values: values.update(padding=_PADDING)),
    "truncation and padding": _json("tokenizer.json", lambda v: v.update(truncation=_TRUNCATION, padding=_PADDING)),
    "dropout": _json("tokenizer.json", lambda values: values["model"].update(dropout=0.5)),
    "dropout of zero": _json("tokenizer.json", lambda values: values["model"].update(dropout=0.0)),
    "tokenizer_config.json written otherwise": _sort("tokenizer_config.json"),
    "longest text": _json("tokenizer_config.json", lambda values: values.update(model_max_length=77)),
    "side of padding": _json("tokenizer_config.json", lambda values: values.update(padding_side="left")),
    "side of truncation": _json("tokenizer_config.json", lambda values: values.update(truncation_side="left")),
    "cleaning of decoded text": _json("tokenizer_config.json", lambda v: v.update(clean_up_tokenization_spaces=True)),
    "reading of literals by default": _json("tokenizer_config.json", lambda v: v.update(split_special_tokens=True)),
    "an unknown setting": _json("tokenizer_config.json", lambda values: values.update(unknown="setting")),
    "another class": _json("tokenizer_config.json", lambda values: values.update(tokenizer_class="LlamaTokenizer")),
    **{name: _text(name, '{"edited": 1}') for name in _UNREAD},
}
OTHER: dict[str, Edit] = {
    "a merge less": _json("tokenizer.json", lambda values: values["model"]["merges"].pop(0)),
    "a normalizer": _json("tokenizer.json", lambda values: values.update(normalizer={"type": "Lowercase"})),
    "another pre-tokenizer": _json(
        "tokenizer.json", lambda values: values["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)
    ),
    "tokens around a text": _json("tokenizer.json", lambda values: values.update(post_processor=_FRAMED)),
    "a token that is not special": _json("tokenizer.json", lambda v: v["added_tokens"][0].update(special=False)),
    "an added token": _json("tokenizer.json", lambda v: v["added_tokens"].append({**_NEW, "special": True})),
    "white space around a token": _json("tokenizer.json", lambda v: v["added_tokens"][2].update(lstrip=True)),
    "another role": _json("tokenizer_config.json", lambda values: values.update(eos_token="<|endoftext|>")),
    "a role less": _json("tokenizer_config.json", lambda values: values.pop("bos_token")),
    "the template": _text("chat_template.jinja", "{{ messages[0]['content'] }}"),
    "a named template": _text("additional_chat_templates/tool_use.jinja", "other"),
    "another named template": _text("additional_chat_templates/rag.jinja", "rag"),
    "added_tokens.json": _json("added_tokens.json", lambda values: values.update({"<new>": 400})),
    "special_tokens_map.json": _json("special_tokens_map.json", lambda v: v.update(sep_token="<|endoftext|>")),
}


def _template_in_config(folder: Path) -> None:
    shutil.rmtree(folder / "additional_chat_templates")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    _json("tokenizer_config.json", lambda values: values.update(chat_template=template))(folder)


def _several_in_config(folder: Path) -> None:
    named = {"tool_use": (folder / "additional_chat_templates" / "tool_use.jinja").read_text()}
    named["default"] = (folder / "chat_template.jinja").read_text()
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "chat_template.jinja").unlink()
    listed = [{"name": name, "template": template} for name, template in named.items()]
    _json("tokenizer_config.json", lambda values: values.update(chat_template=listed))(folder)


SAME["templates as a list"] = _several_in_config
OTHER["one template instead of two"] = _template_in_config


@pytest.mark.parametrize("edit", SAME)
def test_what_changes_no_behavior_changes_no_identity(edit: str, folder: Path, original: Path) -> None:
    before = LoadedTokenizer(str(original))
    SAME[edit](folder)
    after = LoadedTokenizer(str(folder))
    assert _behavior(after) == _behavior(before)
    assert after.identity == before.identity


@pytest.mark.parametrize("edit", OTHER)
def test_what_changes_behavior_changes_the_identity(edit: str, folder: Path, original: Path) -> None:
    before = LoadedTokenizer(str(original))
    OTHER[edit](folder)
    after = LoadedTokenizer(str(folder))
    assert _behavior(after) != _behavior(before)
    assert after.identity != before.identity


def test_every_file_is_edited(original: Path) -> None:
    files = {path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()}
    templates = {"chat_template.jinja", "additional_chat_templates/tool_use.jinja"}
    assert files == {"tokenizer.json", "tokenizer_config.json", *templates, *_UNREAD}


def test_saving_and_loading_keeps_the_identity(original: Path, tmp_path: Path) -> None:
    first = LoadedTokenizer(str(original))
    first.fast.save_pretrained(tmp_path / "again")
    again = LoadedTokenizer(str(tmp_path / "again"))
    assert (again.identity, again.saved_identity) == (first.identity, first.saved_identity)


def test_a_machine_without_a_connection_gives_the_same_identity(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = set()
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        identities.add(LoadedTokenizer(str(original)).saved_identity)
    assert len(identities) == 1


@pytest.mark.parametrize("edit", ["longest text", "side of padding", "truncation", "an unknown setting"])
def test_what_is_only_saved_changes_the_identity_of_what_is_saved(edit: str, folder: Path, original: Path) -> None:
    SAME[edit](folder)
    assert LoadedTokenizer(str(folder)).saved_identity != LoadedTokenizer(str(original)).saved_identity


@pytest.mark.bad_input
@pytest.mark.parametrize("edit", [pytest.param(edit, id=name) for name, edit in OTHER.items()])
def test_a_change_while_it_is_in_use_is_an_error(edit: Edit, folder: Path) -> None:
    tokenizer = LoadedTokenizer(str(folder))
    _ = tokenizer.identity
    tokenizer.check_unchanged()
    edit(folder)
    with pytest.raises(UserError, match=rf"{folder}/\S+: was changed while it was in use"):
        tokenizer.check_unchanged()


@pytest.mark.bad_input
def test_a_change_in_place_with_the_same_size_and_time_is_an_error(folder: Path) -> None:
    tokenizer = LoadedTokenizer(str(folder))
    _ = tokenizer.identity
    template = folder / "chat_template.jinja"
    before = template.stat()
    template.write_text(template.read_text().swapcase())
    os.utime(template, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"chat_template\.jinja: was changed while it was in use"):
        tokenizer.check_unchanged()


def test_files_in_folders_below_are_not_the_tokenizers(folder: Path) -> None:
    tokenizer = LoadedTokenizer(str(folder))
    _ = tokenizer.identity
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "tokenizer_config.json").write_text("{")
    tokenizer.check_unchanged()


@pytest.mark.parametrize("edit", ["tokenizer.json written otherwise", "README.md", "other.json", "config.json"])
def test_a_change_that_makes_the_same_tokenizer_is_no_error(edit: str, folder: Path) -> None:
    tokenizer = LoadedTokenizer(str(folder))
    _ = tokenizer.identity
    SAME[edit](folder)
    tokenizer.check_unchanged()
    tokenizer.check_unchanged()
