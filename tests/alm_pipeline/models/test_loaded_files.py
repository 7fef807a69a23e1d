"""A model's identity covers the files that decide its predictions, and no others: observed, and by editing each."""

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alm_pipeline.models import loaded_files
from alm_pipeline.models.health.damage import MODEL_DOCUMENTS, TOKENIZER_DOCUMENTS, VOCABULARY
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from storage.errors import UserError
from tests.alm_pipeline.models.folders import CODED, KINDS, UNREAD, coded, edit_config, make, single
from tests.alm_pipeline.models.opened import opened_files

_IDS = torch.tensor([[5, 40, 41, 90, 7, 100]])
_GENERATION = "generation_config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("folders")
    return {kind: make(kind, place / kind) for kind in KINDS}


def _reference(folder: Path, kind: str = "") -> ModelReference:
    return ModelReference(str(folder), trust_remote_code=kind in CODED)


def _files(reference: ModelReference) -> set[str]:
    """The names of the files in its identity."""
    return set(reference._files.hashes)


def _logits(reference: ModelReference) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = reference.load("float32", device="cpu")(_IDS).logits
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_opened_is_what_is_hashed(kind: str, folders: dict[str, Path]) -> None:
    reference = _reference(folders[kind], kind)
    with opened_files(folders[kind]) as opened:
        reference.load("float32", device="cpu")
    hashed = {name for name in _files(reference) if "--" not in name}
    assert opened - {_GENERATION} <= hashed
    # code that is beside the model's may be imported in ways that nobody can see in advance
    assert {name for name in hashed if not name.endswith(".py")} <= opened
    assert opened & set(UNREAD) == set()


def _edit(file: Path) -> None:
    """Change a file so that, if the model reads it at all, its predictions are others."""
    match file.suffix:
        case ".safetensors" if file.stat().st_size > 100:
            tensors = load_file(file)
            name = sorted(name for name in tensors if tensors[name].is_floating_point())[0]
            tensors[name] = tensors[name] + 1
            save_file(tensors, file, metadata={"format": "pt"})
        case ".py":
            text = file.read_text()
            file.write_text(text.replace("2.0", "3.0").replace("* FACTOR", "- FACTOR") + "\n# edited\n")
        case ".json":
            values: dict[str, Any] = json.loads(file.read_text())
            other = {"lora_alpha": 2 * values["lora_alpha"]} if "lora_alpha" in values else {"rms_norm_eps": 0.5}
            file.write_text(json.dumps(values | other))
        case _:
            file.write_bytes(file.read_bytes() + b"edited")


def _edited(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each file of a folder, and of the folder of its code, with its name; edited, and restored afterward."""
    code = folder.parent / f"code-of-{folder.name}"
    for place in filter(Path.is_dir, (folder, code)):
        for file in sorted(path for path in place.rglob("*") if path.is_file()):
            before = file.read_bytes()
            _edit(file)
            yield file.relative_to(place).as_posix(), file
            file.write_bytes(before)


# what decides, by kind, besides config.json and weights
_DECIDES = {
    "sharded": {"model.safetensors.index.json"},
    "versioned": {"config.5.0.0.json"},
    "adapter": {"adapter_config.json", "adapter_model.safetensors"},
    "coded": {"modeling_scaled.py", "factor.py", "train.py", "original/code.py"},
    "coded_elsewhere": {"modeling_scaled.py", "factor.py"},
    "byte_student": {"modeling_ngram_bytes.py", "train.py", "original/code.py"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_in_the_identity_if_and_only_if_it_decides(kind: str, folders: dict[str, Path]) -> None:
    identity, logits = _reference(folders[kind], kind).identity, _logits(_reference(folders[kind], kind))
    deciding, names = set[str](), set[str]()
    for name, _ in _edited(folders[kind]):
        names.add(name)
        changed = _reference(folders[kind], kind).identity != identity
        if changed:
            deciding.add(name)
        if name not in (*UNREAD, *_TOKENIZER):  # the others are not opened, as another test shows
            assert changed or torch.equal(_logits(_reference(folders[kind], kind)), logits), name
    assert names >= {*UNREAD, *_TOKENIZER, _GENERATION, "config.json"}
    weights = {
        name for name in names - set(UNREAD) if name.startswith(("model", "weights")) and name.endswith(".safetensors")
    }
    assert deciding == {"config.json", *weights, *_DECIDES.get(kind, set())}
    assert _reference(folders[kind], kind).identity == identity


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("single", "model.safetensors"),
        ("sharded", "model-00001-of-00006.safetensors"),
        ("adapter", "adapter_config.json"),
        ("adapter", "adapter_model.safetensors"),
        ("coded", "factor.py"),
        ("coded_elsewhere", "../code-of-coded_elsewhere/factor.py"),
        ("versioned", "config.5.0.0.json"),
    ],
)
def test_the_edits_of_this_test_do_change_predictions(kind: str, file: str, folders: dict[str, Path]) -> None:
    logits = _logits(_reference(folders[kind], kind))
    edited = folders[kind] / file
    if not edited.is_file():
        edited = sorted(folders[kind].glob("model-00001*"))[0]
    before = edited.read_bytes()
    _edit(edited)
    assert not torch.equal(_logits(_reference(folders[kind], kind)), logits)
    edited.write_bytes(before)


def test_code_that_may_run_is_in_the_identity_and_other_code_is_not(folders: dict[str, Path]) -> None:
    trusted, untrusted = (ModelReference(str(folders["coded"]), trust) for trust in (True, False))
    assert not torch.equal(_logits(trusted), _logits(untrusted))
    assert trusted.identity != untrusted.identity
    trusted, untrusted = (ModelReference(str(folders["single"]), trust) for trust in (True, False))
    assert trusted.identity == untrusted.identity


def test_an_adapter_counts_only_where_it_is_loaded(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with_peft = _files(_reference(folders["adapter"]))
    monkeypatch.setattr(loaded_files, "is_peft_available", lambda: False)
    assert with_peft - _files(_reference(folders["adapter"])) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_copy_elsewhere_is_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sharded"], tmp_path / "elsewhere")
    assert _reference(tmp_path / "elsewhere").identity == _reference(folders["sharded"]).identity


def test_weights_of_one_file_are_loaded_beside_an_index(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(folders["sharded"], folder)
    shutil.copy(folders["single"] / "model.safetensors", folder)
    assert _files(_reference(folder)) == {"config.json", "model.safetensors"}
    assert torch.equal(_logits(_reference(folder)), _logits(_reference(folders["single"])))


def _only_other_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _without_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"x": "gone.safetensors"}}')


def _of_two_repositories(folder: Path) -> None:
    one, other = ("someone/one--code.Config", "someone/other--code.Model")
    edit_config(folder, auto_map={"AutoConfig": one, "AutoModelForCausalLM": other})


def _adapter_alone(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")


_WRONG_NAMES = [("configuration_files", [value]) for value in ("config.x.json", "config.5.0.0.json.json")]
"""Fields of a configuration that name files, with values that name none."""


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_only_other_weights, r"holds no weights \(model\.safetensors", id="pickled weights"),
        pytest.param(_without_shard, r"gone\.safetensors: can't be read", id="missing shard"),
        pytest.param(
            lambda folder: edit_config(folder, transformers_weights="other.safetensors"),
            r"holds no weights \(other\.safetensors\)",
            id="named weights that are missing",
        ),
        *(
            pytest.param(
                lambda folder, setting=setting, value=value: edit_config(folder, **{setting: value}),
                rf"config\.json: {setting} is .*remove it",
                id=f"{setting} {value!r}",
            )
            for setting, values in {
                "auto_map": (["modeling.Model"], "x", 3),
                "transformers_weights": (3, ["x"], {}),
            }.items()
            for value in values
        ),
        pytest.param(_adapter_alone, "is an adapter without its model: merge it", id="adapter alone"),
        pytest.param(
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            r"contains an adapter_config\.json without adapter_model\.safetensors: merge it",
            id="adapter without safetensors",
        ),
        pytest.param(lambda folder: (folder / "config.json").unlink(), r"has no config\.json", id="no configuration"),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("[]"),
            r"config\.json: holds .* not a JSON object",
            id="a list",
        ),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("{"), r"config\.json: is not valid JSON", id="half"
        ),
        pytest.param(
            lambda folder: edit_config(folder, auto_map={"AutoModelForCausalLM": "/nowhere/x--code.Model"}),
            "/nowhere/x: not a local folder",
            id="code that is missing",
        ),
        *[
            pytest.param(
                partial(edit_config, **{field: value}), rf"config\.json: its {field} ", id=f"{field} {value!r}"
            )
            for field, value in _WRONG_NAMES
        ],
    ],
)
def test_a_folder_that_can_not_be_loaded_has_no_identity(damage: Any, message: str, tmp_path: Path) -> None:
    single(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        _ = ModelReference(str(tmp_path), trust_remote_code=True).identity
    with pytest.raises(UserError, match=message):
        ModelReference(str(tmp_path), trust_remote_code=True).load("float32")


@pytest.mark.bad_input
@pytest.mark.parametrize("make_special", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")], ids=["FIFO", "device"])
@pytest.mark.parametrize("file", sorted({*MODEL_DOCUMENTS, *TOKENIZER_DOCUMENTS, VOCABULARY, "chat_template.jinja"}))
def test_reading_a_special_file_does_not_hang(file: str, make_special: Any, tmp_path: Path) -> None:
    single(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    make_special(tmp_path / file)

    def use() -> None:
        _ = LoadedTokenizer(str(tmp_path)).identity
        ModelReference(str(tmp_path)).load("float32")

    with pytest.raises(UserError, match=rf"{file}: is a FIFO, a device or a socket|has no config\.json"):
        use()


@pytest.mark.bad_input
@pytest.mark.parametrize("make_special", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")], ids=["FIFO", "device"])
def test_a_special_file_is_no_shard(make_special: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sharded"], tmp_path / "model")
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.unlink()
    make_special(shard)
    for use in (lambda: _reference(folder).identity, lambda: _reference(folder).load("float32")):
        with pytest.raises(UserError, match=rf"{shard.name}: is not a regular file"):
            use()


@pytest.mark.bad_input
def test_code_from_several_repositories_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coded(tmp_path)
    _of_two_repositories(tmp_path)
    fetched: dict[str, Path] = {}
    for name in ("one", "other"):
        fetched[f"someone/{name}"] = tmp_path / name
        (tmp_path / name).mkdir()
    monkeypatch.setattr("alm_pipeline.models.reference.fetch_folder", lambda name, *_: fetched[name])
    with pytest.raises(UserError, match=r"its code comes from several repositories \(someone/one, someone/other\)"):
        ModelReference(str(tmp_path), trust_remote_code=True).load("float32")


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["adapter"])
def test_no_other_model_is_made_of_one_with_an_adapter(kind: str, folders: dict[str, Path]) -> None:
    for use in (ModelReference.refuse_adapter, ModelReference.weights):
        with pytest.raises(UserError, match=r"contains an adapter \(adapter_config\.json\), which can't be made"):
            use(_reference(folders[kind]))
