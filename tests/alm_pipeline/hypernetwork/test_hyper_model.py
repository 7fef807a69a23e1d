"""Switching on the fly: each tokenizer as `alm transfer` would give it, back to the bit, and batches of several."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from alm_pipeline.ensemble.generation import generate_text
from alm_pipeline.ensemble.loading import load, load_ensemble
from alm_pipeline.hypernetwork.fine_tunes import apply_hypernetwork
from alm_pipeline.hypernetwork.hyper_model import HyperModel
from alm_pipeline.transfer.zero_step import transfer
from flows.cli.app import app
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.hypernetwork.networks import write_hypernetwork

KINDS = ("llama", "untied", "gemma", "gpt2")
TEXTS = ["The quick brown fox jumps", "How many clips", "def add(left, right):\n    return"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Source models by kind, and the tokenizers `other` and `third`."""
    root = tmp_path_factory.mktemp("hyper")
    own, pieces = tiny.byte_level_tokenizer(), tiny.sentencepiece_tokenizer()
    made = {
        "llama": tiny.save(root / "llama", tiny.tiny_llama(len(own)), own),
        "untied": tiny.save(root / "untied", tiny.tiny_llama(len(own), tied=False), own),
        "gemma": tiny.save(root / "gemma", tiny.tiny_gemma(len(pieces)), pieces),
        "gpt2": tiny.save(root / "gpt2", tiny.tiny_gpt2(len(own)), own),
    }
    others = {
        "other": tiny.byte_level_tokenizer(520, ["quick brown foxes, jumping left and right. How many clips? " * 5]),
        "third": tiny.byte_level_tokenizer(330, tiny.TEXTS[1:]),
    }
    for name, tokenizer in others.items():
        tokenizer.save_pretrained(root / name)
        made[name] = str(root / name)
    return made


def network(folders: dict[str, str], kind: str, root: Path) -> str:
    return write_hypernetwork(root / "network", folders[kind], (32, 32) if kind == "untied" else (32,))


def transferred(folders: dict[str, str], kind: str, target: str | None, root: Path) -> tuple[Any, Any]:
    """The model with the tokenizer as `alm transfer` writes it, loaded by transformers."""
    folder = folders[kind] if target is None else str(root / f"moved-{Path(target).name}")
    if target is not None:
        setting = {"initialization": "hypernetwork", "hypernetwork": str(root / "network")}
        transfer(folders[kind], target, folder, level="none", **setting)  # type: ignore[arg-type]
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_each_tokenizer_is_that_of_a_transfer(kind: str, folders: dict[str, str], tmp_path: Path) -> None:
    hyper = HyperModel(folders[kind], network(folders, kind, tmp_path))
    for target in (folders["other"], None, folders["third"]):
        expected, tokenizer = transferred(folders, kind, target, tmp_path)
        model = hyper.use(target)
        assert hyper.tokenizer(target).fast.get_vocab() == tokenizer.get_vocab()
        ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
        assert model.config.vocab_size == expected.config.vocab_size
        assert model.generation_config.eos_token_id == expected.generation_config.eos_token_id
        settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(model.generate(ids, **settings), expected.generate(ids, **settings))


@pytest.mark.parametrize("kind", KINDS)
def test_going_back_restores_every_bit(kind: str, folders: dict[str, str], tmp_path: Path) -> None:
    hyper = HyperModel(folders[kind], network(folders, kind, tmp_path))
    ids = torch.arange(20)[None]

    def seen(name: str | None) -> tuple[torch.Tensor, str, str]:
        model = hyper.use(name)
        with torch.no_grad():
            return model(input_ids=ids).logits, str(model.config), str(model.generation_config)

    names = [None, folders["other"], folders["third"]]
    before = [seen(name) for name in names]
    tables = [hyper.use(name).get_input_embeddings().weight for name in names]
    for number in (1, 0, 2, 1, 0):
        logits, *configs = seen(names[number])
        assert torch.equal(logits, before[number][0])
        assert configs == list(before[number][1:])
        assert hyper.model.get_input_embeddings().weight is tables[number]  # nothing is copied
        tied = hyper.model.get_output_embeddings().weight is tables[number]
        assert tied == (kind != "untied")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_may_have_a_tokenizer_per_row(kind: str, folders: dict[str, str], tmp_path: Path) -> None:
    hyper = HyperModel(folders[kind], network(folders, kind, tmp_path))
    names = [folders["other"], None, folders["third"]]
    models = [transferred(folders, kind, name, tmp_path) for name in names]
    rows = [tokenizer(text).input_ids for (_, tokenizer), text in zip(models, TEXTS, strict=True)]
    for (model, _), ids, logits in zip(models, rows, hyper.logits(list(zip(names, rows, strict=True))), strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0, :, : logits.shape[-1]]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    texts = hyper.generate(list(zip(TEXTS, names, strict=True)), max_tokens=6)
    for (model, tokenizer), ids, text in zip(models, rows, texts, strict=True):
        inputs = torch.tensor([ids])
        settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(inputs)}
        new = model.generate(inputs, **settings)[0, len(ids) :]
        assert text == tokenizer.decode(new, skip_special_tokens=True)
    assert hyper.generate([(TEXTS[0], names[0])], max_tokens=6) == texts[:1]
    assert hyper.generate([]) == []


def test_the_tables_of_few_tokenizers_are_kept(folders: dict[str, str], tmp_path: Path) -> None:
    hyper = HyperModel(folders["llama"], network(folders, "llama", tmp_path), kept=1)
    ids = torch.arange(20)[None]
    logits = {}
    for name in (folders["other"], folders["third"], folders["other"]):
        found = hyper.use(name)(input_ids=ids).logits
        assert hyper.tokenizers == [name]
        assert torch.equal(logits.setdefault(name, found), found)


def test_another_model_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was trained for the model"):
        HyperModel(folders["gpt2"], network(folders, "llama", tmp_path))


def test_prompts_without_tokens_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    hyper = HyperModel(folders["llama"], network(folders, "llama", tmp_path))
    with pytest.raises(UserError, match="the prompt has no token"):
        hyper.generate([("", folders["other"])])


def test_generate_takes_a_tokenizer(folders: dict[str, str], tmp_path: Path) -> None:
    folder = network(folders, "llama", tmp_path)
    model, tokenizer = transferred(folders, "llama", folders["other"], tmp_path)
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    new = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs.input_ids.shape[1] :]
    arguments = ["generate", folders["llama"], TEXTS[0], "--max-tokens", "5", "--tokenizer", folders["other"]]
    result = CliRunner().invoke(app, [*arguments, "--hypernetwork", folder])
    assert result.exit_code == 0, result.output
    written = list[str]()
    names = {"tokenizer_name": folders["other"], "hypernetwork": folder}
    generate_text(folders["llama"], TEXTS[0], written.append, max_tokens=5, **names)  # type: ignore[arg-type]
    expected = tokenizer.decode(new, skip_special_tokens=True)
    # the bytes of a character that is never completed are left out
    assert "".join(written).replace("\ufffd", "") == expected.replace("\ufffd", "")
    alone = CliRunner().invoke(app, arguments)
    assert alone.exit_code == 1
    assert "--tokenizer and --hypernetwork belong together" in alone.stderr


def test_members_get_their_tokenizer_on_the_fly(folders: dict[str, str], tmp_path: Path) -> None:
    """An ensemble of one, and of two that then have the same tokenizer."""
    network(folders, "llama", tmp_path)
    member = {"model": folders["llama"], "tokenizer": folders["other"], "hypernetwork": "./network"}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"members": [member]}))
    ensemble = load_ensemble(tmp_path / "one.yaml")
    model, tokenizer = transferred(folders, "llama", folders["other"], tmp_path)
    assert ensemble.tokenizer.get_vocab() == tokenizer.get_vocab()
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        found = ensemble(input_ids=ids).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "none.yaml").write_text(yaml.safe_dump({"members": [{"model": "m", "hypernetwork": "h"}]}))
    with pytest.raises(UserError, match="name the tokenizer that it is to give the model"):
        load_ensemble(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="an ensemble's file names the tokenizer"):
        load(str(tmp_path / "one.yaml"), tokenizer_name=folders["other"], hypernetwork=str(tmp_path / "network"))


def test_a_fine_tune_gets_the_change_of_its_base(folders: dict[str, str], tmp_path: Path) -> None:
    folder = network(folders, "llama", tmp_path)
    own = tiny.byte_level_tokenizer()
    tuned = tiny.tiny_llama(len(own))
    random = torch.Generator().manual_seed(3)
    for parameter in tuned.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=random)
    name = tiny.save(tmp_path / "tuned", tuned, own)
    apply_hypernetwork(folders["llama"], folders["other"], name, tmp_path / "result", folder)
    parts = {
        "fvt of the fine-tune": (name, {}),
        "fvt": (folders["llama"], {}),
        "predicted": (folders["llama"], {"initialization": "hypernetwork", "hypernetwork": folder}),
    }
    rows = {}
    for part, (model, setting) in parts.items():
        level = "measured" if part == "predicted" else "none"
        transfer(model, folders["other"], tmp_path / part, level=level, **setting)  # type: ignore[arg-type]
        rows[part] = AutoModelForCausalLM.from_pretrained(tmp_path / part).get_input_embeddings().weight.detach()
    result = AutoModelForCausalLM.from_pretrained(tmp_path / "result")
    expected = rows["fvt of the fine-tune"] + rows["predicted"] - rows["fvt"]
    torch.testing.assert_close(result.get_input_embeddings().weight.detach(), expected, rtol=1e-5, atol=1e-5)
    body = {key: value for key, value in tuned.state_dict().items() if "layers" in key}
    after = result.state_dict()
    assert all(torch.equal(after[key], value) for key, value in copy.deepcopy(body).items())
    done = CliRunner().invoke(
        app,
        ["apply-transfer", folders["llama"], folders["other"], name, str(tmp_path / "cli"), "--hypernetwork", folder],
    )
    assert done.exit_code == 0, done.output
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cli").config.vocab_size == len(expected)
