"""The commands that use models and ensembles."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from alm_pipeline.ensemble.config import EnsembleConfig, MemberConfig, read_config, write_config
from alm_pipeline.ensemble.generation import TextStream
from alm_pipeline.ensemble.loading import load, load_ensemble
from flows.cli.app import app
from storage.errors import UserError
from tests import tiny


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_an_ensemble_of_a_model_with_itself_writes_what_the_model_writes(llama_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    copied = str(shutil.copytree(llama_folder, tmp_path / "copy"))
    members = (MemberConfig(model=llama_folder), MemberConfig(model=copied, weight=2.0))
    write_config(EnsembleConfig(members=members, mean="logprobs"), folder)
    model, tokenizer = load(llama_folder)
    ids = tokenizer("The quick", return_tensors="pt")
    written = model.generate(**ids, do_sample=False, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
    expected = tokenizer.decode(written, skip_special_tokens=True)
    for name in (llama_folder, str(folder), str(folder / "ensemble.yaml")):
        result = command("generate", name, "The quick", "--max-tokens", "8")
        assert result.exit_code == 0, result.output
        # incomplete characters are left out
        assert result.stdout.rstrip("\n") == expected.rstrip("\n").rstrip("\ufffd").rstrip("\n")


def test_mistakes_are_reported(llama_folder: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("members: [{model: a, wieght: 2}]\n")
    result = command("generate", str(file), "a")
    assert result.exit_code == 1
    assert "members.0.wieght" in result.stderr
    file.write_text("members: [{model: a, weight: 0}]\n")
    assert "every weight is 0" in command("generate", str(file), "a").stderr
    assert "can't be read" in command("generate", str(tmp_path / "none.yaml"), "a").stderr
    refused = command("generate", llama_folder, "a", "--dtype", "int8")
    assert (refused.exit_code, "int8" in refused.stderr) == (2, True)


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["model", "ensemble"])
@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ("", "4", "PROMPT: has no tokens"),
        ("The", "600", r"600 new ones are more than its context of 512: set --max-tokens to at most 51\d"),
        ("The quick 1 " * 300, "4", "more than its context of 512: shorten the prompt"),
    ],
    ids=["empty", "many", "long"],
)
def test_a_prompt_that_can_not_be_continued_is_refused(
    llama_folder: str, tmp_path: Path, kind: str, prompt: str, tokens: str, message: str
) -> None:
    """A model with learned positions stopped with a traceback at its last one; others wrote on, and said nothing."""
    write_config(EnsembleConfig(members=(MemberConfig(model=llama_folder),)), tmp_path / "one")
    name = llama_folder if kind == "model" else str(tmp_path / "one")
    result = command("generate", name, prompt, "--max-tokens", tokens)
    assert result.exit_code == 1, result.output
    assert re.search(message, " ".join(result.stderr.split())), result.stderr
    assert not result.stdout


def test_members_beside_the_file(tmp_path: Path, llama_folder: str) -> None:
    (tmp_path / "model").symlink_to(llama_folder)
    (tmp_path / "mine.yaml").write_text("members: [{model: ./model}, {model: ../elsewhere}]\n")
    first, second = read_config(tmp_path / "mine.yaml").members
    assert (first.model, second.model) == (f"{tmp_path}/model", f"{tmp_path}/../elsewhere")
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"members": [{"model": "./model"}]}))
    assert len(load_ensemble(tmp_path / "one.yaml").members) == 1
    with pytest.raises(UserError, match="is not an ensemble"):
        load_ensemble(llama_folder)


def test_a_written_configuration_is_not_overwritten(tmp_path: Path) -> None:
    config = EnsembleConfig(members=(MemberConfig(model="a"),), vocabulary="mined")
    assert read_config(write_config(config, tmp_path / "new")) == config
    with pytest.raises(UserError, match="exists already"):
        write_config(config, tmp_path / "new")


def test_no_character_is_broken(byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast) -> None:
    text = "naïve 東京 🙂👩‍👩‍👧 end"
    for tokenizer in (byte_level, sentencepiece):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        parts: list[str] = []
        stream = TextStream(tokenizer, parts.append)
        stream.put(torch.tensor([ids[:1]]))
        for id_ in ids[1:]:
            stream.put(torch.tensor([id_]))
        stream.put(torch.tensor([tokenizer.eos_token_id]))
        stream.end()
        assert "".join(parts) == text.removeprefix(tokenizer.decode(ids[:1]))
        assert all("\ufffd" not in part for part in parts)
        assert len(parts) > 5


def test_evaluate_prints_the_harness_table(llama_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "The quick brown fox"}) + "\n")
    task = {
        "task": "own_texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "texts.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(yaml.safe_dump(task))
    output = tmp_path / "results.json"
    found = command(
        "evaluate",
        llama_folder,
        "--tasks",
        "own_texts",
        "--task-folder",
        str(tmp_path / "tasks"),
        "--output",
        str(output),
    )
    assert found.exit_code == 0, found.output
    assert "bits_per_byte" in found.stdout
    written = json.loads(output.read_text())
    assert written["own_texts"]["bits_per_byte,none"] > 0
    from alm_pipeline.ensemble import harness

    assert json.loads(harness.json_results({"results": written})) == harness.plain_results({"results": written})
    assert "no such task" in command("evaluate", llama_folder, "--tasks", "nonsense-task").stderr


def test_acceptance_of_drafts_is_a_table(llama_folder: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in (*tiny.TEXTS, "x")))
    tokenizer = tiny.byte_level_tokenizer()
    other = tiny.save(tmp_path / "other", tiny.tiny_qwen(len(tokenizer)), tokenizer)
    target = tiny.save(tmp_path / "target", tiny.tiny_llama(len(tokenizer)), tokenizer)
    result = command("acceptance", target, target, other, "--corpus", str(file), "--max-tokens", "8", "--ahead", "3")
    assert result.exit_code == 0, result.output
    assert "100.0%" in result.stdout
    assert "left out, too_short: 1" in result.stdout
    asked = ("acceptance", target, target, other, "--corpus", str(file), "--max-tokens", "8", "--json")
    found = json.loads(command(*asked).stdout)
    assert (found["target"], found["ahead"], found["left_out"]) == (target, 5, {"too_short": 1})
    itself, draft = found["drafts"]
    assert (itself["acceptance"], itself["difference"]) == (1.0, None)
    assert draft["difference"] == draft["acceptance"] - 1
    refused = command("acceptance", target, llama_folder + "-missing", "--corpus", str(file))
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
