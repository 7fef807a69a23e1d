"""Every file of a model or tokenizer, damaged in every way: one sentence with the file, the cause and a fix."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from alm_pipeline.models.loading import load_model
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from storage.errors import UserError
from tests import tiny
from tests.documents import replaced
from tests.sampling import sampled_pairs

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 127608\n"
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATE = "chat_template.jinja"


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_link(target: str) -> Callable[[Path], None]:
    def link(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return link


def containing(content: bytes) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "empty": (containing(b""), ("is empty",)),
    "blank": (containing(b"\n \n"), ("is empty",)),
    "cut": (lambda file: os.truncate(file, file.stat().st_size // 2), ("only a part", "interrupted copy")),
    "binary": (containing(bytes(range(256)) * 8), ("is not UTF-8", "is not a safetensors file")),
    "a pointer": (containing(POINTER), ("git-lfs pointer", "`git lfs pull`")),
    "a page": (containing(b"<html>404 Not Found</html>"), ("is not valid JSON", "is not a safetensors file")),
    "a list": (containing(b"[1, 2]"), ("not a JSON object", "is not a safetensors file")),
    "null": (containing(b"null"), ("not a JSON object", "is not a safetensors file")),
    "nested": (containing(b"[" * 100_000), ("maximum recursion depth", "is not a safetensors file")),
    "a folder": (a_folder, ("can't be read: [Errno 21] Is a directory",)),
    "a link to itself": (lambda file: a_link(file.name)(file), ("can't be read: [Errno 40]",)),
    "a link to nothing": (a_link("nowhere"), ("can't be read: [Errno 2] No such file",)),
}
TEXT_DAMAGES = ("empty", "binary", "a pointer", "a folder", "a link to itself", "a link to nothing")
FIXES = ("fetch it again", "git lfs pull", "save", "make it a readable file")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    tiny.save(folder, tiny.tiny_llama(400), tiny.byte_level_tokenizer())
    for name in ("special_tokens_map.json", "added_tokens.json"):  # older versions of transformers write them
        (folder / name).write_text(json.dumps({"eos_token": "<|im_end|>"} if "special" in name else {"<new>": 400}))
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def read(folder: Path, file: str) -> None:
    if file in MODEL_FILES:
        load_model(str(folder), "float32", device="cpu")
        return
    tokenizer = LoadedTokenizer(str(folder))
    for part in ("forms", "fast", "view", "frame", "boundary_ids", "encoding_backend"):
        getattr(tokenizer, part)


def message_of(folder: Path, file: str) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, file)
    message = str(caught.value)
    assert "\n" not in message
    assert any(fix in message for fix in FIXES), message
    return message


PRODUCT = [(file, damage) for file in (*MODEL_FILES, *TOKENIZER_FILES) for damage in DAMAGES]
PRODUCT += [(TEMPLATE, damage) for damage in TEXT_DAMAGES]


@pytest.mark.bad_input
@pytest.mark.parametrize(("file", "damage"), [pytest.param(*pair, id=": ".join(pair)) for pair in PRODUCT])
def test_a_damaged_file_is_named(file: str, damage: str, folder: Path) -> None:
    make, causes = DAMAGES[damage]
    make(folder / file)
    message = message_of(folder, file)
    assert message.startswith(f"{folder / file}: ")
    assert any(cause in message for cause in causes), message


def test_every_file_of_a_folder_is_damaged(sound: Path) -> None:
    assert {file.name for file in sound.iterdir()} == {*MODEL_FILES, *TOKENIZER_FILES, TEMPLATE}


@pytest.mark.parametrize("file", [*MODEL_FILES, *TOKENIZER_FILES, TEMPLATE])
def test_a_sound_one_is_read(file: str, folder: Path) -> None:
    read(folder, file)


@pytest.mark.bad_input
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(file: str, folder: Path) -> None:
    (folder / file).unlink()
    assert file in message_of(folder, file)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield where every value is, of a list only the first. Tokens and merges are all alike."""
    if path:
        yield path
    if isinstance(value, dict) and path != ("model", "vocab"):
        for key, item in value.items():
            yield from paths(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from paths(value[0], (*path, 0))


OTHER_TYPES: tuple[Any, ...] = (None, "x", -1, [], {}, [[1]], True, 1e30)


@pytest.mark.bad_input
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_field_of_another_type_is_no_traceback(file: str, folder: Path) -> None:
    """Some are taken all the same; what is refused names the folder, and says how to get a sound one."""
    document = json.loads((folder / file).read_text(encoding="utf-8"))
    refused: list[str] = []
    # loading a model takes longer than a tokenizer
    values = OTHER_TYPES if file.startswith("tokenizer") else OTHER_TYPES[:4]
    for path, value in sampled_pairs(paths(document), values):
        (folder / file).write_text(json.dumps(replaced(document, path, value)), encoding="utf-8")
        try:
            read(folder, file)
        except UserError as error:
            refused.append(str(error))
    assert [message for message in refused if not message.startswith(str(folder)) or "\n" in message] == []
    assert refused or file == "generation_config.json"


CODE_FIELDS = ("transformers_weights", "configuration_files", "auto_map", "quantization_config", "text_config")


@pytest.mark.bad_input
@pytest.mark.parametrize("field", CODE_FIELDS)
@pytest.mark.parametrize("value", OTHER_TYPES, ids=repr)
def test_a_field_that_names_files_or_code_is_no_traceback(field: str, value: Any, folder: Path) -> None:
    """The identity reads these fields itself; a folder has them rarely."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    model = ModelReference(str(folder), trust_remote_code=True)
    try:
        _ = model.identity, model.context_length, model.vocabulary_rows
    except UserError as error:
        assert str(folder) in str(error)  # noqa: PT017  # most values are taken


@pytest.mark.bad_input
def test_merges_that_would_end_the_process_are_refused(folder: Path) -> None:
    """tokenizers cuts a prefix off without looking, and aborts where that splits a character."""
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["continuing_subword_prefix"] = "x"
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    assert "that has the continuing_subword_prefix 'x'" in message_of(folder, "tokenizer.json")


def test_a_prefix_that_fits_is_taken(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = state["model"]["vocab"]
    vocabulary |= {piece: id_ for id_, piece in enumerate(["##b", "##c", "##cb"], len(vocabulary) + 1)}
    state["model"] |= {"continuing_subword_prefix": "##", "merges": [["##c", "##b"]]}
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("acb").tokens
    assert LoadedTokenizer(str(folder)).fast.tokenize("acb") == expected == ["a", "##cb"]


@pytest.mark.bad_input
def test_a_truncation_that_the_library_panics_at_is_one_sentence(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(UserError, match=r"can't be loaded: .*stride"):
        read(folder, "tokenizer.json")


def quantized(method: str) -> dict[str, Any]:
    settings = {"load_in_4bit": True} if method == "bitsandbytes" else {"bits": 4, "group_size": 128}
    return {"quant_method": method, **settings}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("method", "package"),
    [
        ("gptq", "optimum"),
        ("awq", "gptqmodel"),
        ("bitsandbytes", "bitsandbytes"),
        ("compressed-tensors", "compressed"),
        ("hqq", "hqq"),
        ("quanto", "quanto"),
        ("aqlm", "aqlm"),
    ],
)
def test_a_missing_quantizer_is_named(method: str, package: str, folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantized(method)}))
    with pytest.raises(UserError) as caught:
        load_model(str(folder), "float32", device="cpu")
    assert str(caught.value).startswith(f"{folder}: ")
    assert package in str(caught.value).lower()


@pytest.mark.bad_input
def test_a_missing_package_of_the_models_own_code_is_named(folder: Path) -> None:
    (folder / "modeling_own.py").write_text("import package_that_is_not_there\nclass Own: ...\n")
    file = folder / "config.json"
    values = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(UserError, match=r"package_that_is_not_there.*install"):
        load_model(str(folder), "float32", device="cpu", trust_remote_code=True)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "code",
    ["class Own(: ...", "raise RuntimeError('no')", "x = 1", "class Own: ...", "1 / 0", "import sys; sys.stdin.nope"],
)
def test_code_of_the_model_that_fails_is_one_sentence(code: str, folder: Path) -> None:
    (folder / "modeling_own.py").write_text(code)
    file = folder / "config.json"
    values = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(UserError, match="can't be loaded as a causal language model") as caught:
        load_model(str(folder), "float32", device="cpu", trust_remote_code=True)
    assert str(caught.value).startswith(f"{folder}: ")


@pytest.fixture
def parts(folder: Path) -> Path:
    """The same model in several files."""
    load_model(str(folder), "float32", device="cpu").save_pretrained(folder / "parts", max_shard_size="50KB")
    return folder / "parts"


@pytest.mark.bad_input
@pytest.mark.parametrize("index", ["gone", "lost", "cut", "no map", "a map of numbers", "names no file"])
def test_a_damaged_index_is_named(index: str, parts: Path) -> None:
    file, shard = parts / "model.safetensors.index.json", min(parts.glob("*.safetensors"))
    content = json.loads(file.read_text())
    match index:
        case "gone":
            shard.unlink()
        case "lost":
            file.unlink()
        case "cut":
            os.truncate(file, file.stat().st_size // 2)
        case "no map":
            file.write_text("{}")
        case "a map of numbers":
            file.write_text(json.dumps({"weight_map": dict.fromkeys(content["weight_map"], 1)}))
        case _:
            file.write_text(json.dumps({**content, "weight_map": dict.fromkeys(content["weight_map"], "other")}))
    with pytest.raises(UserError) as caught:
        load_model(str(parts), "float32", device="cpu")
    named = {"gone": shard.name, "names no file": "other", "lost": "model.safetensors"}.get(index, file.name)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.bad_input
def test_a_damaged_file_that_is_not_read_is_not_blamed(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"")
    load_model(str(folder), "float32", device="cpu")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_act": "x"}))
    with pytest.raises(UserError, match="can't be loaded as a causal language model") as caught:
        load_model(str(folder), "float32", device="cpu")
    assert "consolidated" not in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", ["empty", "cut", "a pointer", "a folder", "binary"])
def test_a_damaged_part_is_named(damage: str, parts: Path) -> None:
    part = max(parts.glob("*.safetensors"))
    DAMAGES[damage][0](part)
    with pytest.raises(UserError) as caught:
        load_model(str(parts), "float32", device="cpu")
    assert str(caught.value).startswith(f"{part}: ")
