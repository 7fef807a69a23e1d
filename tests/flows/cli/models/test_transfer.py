"""The commands that give a model another tokenizer."""

import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows.cli.app import app


def test_a_transfer_prints_its_counts_and_compares(
    llama_folder: str, gemma_folder: str, corpus_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    options = ["--initialization", "mean", "--corpus", corpus_url, "--examples", "5"]
    result = CliRunner().invoke(app, ["transfer", llama_folder, gemma_folder, str(folder), *options])
    assert result.exit_code == 0, result.output
    assert " copied, " in result.stdout
    assert " composed" in result.stdout
    rows = [line for line in result.stdout.splitlines() if llama_folder in line or str(folder) in line]
    assert len([row for row in rows if "│" in row]) == 2
    assert len(AutoTokenizer.from_pretrained(folder)) == AutoModelForCausalLM.from_pretrained(folder).config.vocab_size
    again = CliRunner().invoke(app, ["transfer", llama_folder, gemma_folder, str(folder)])
    assert again.exit_code == 1
    assert "exists already" in again.stderr


def test_a_fine_tune_follows_its_base(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    moved, made = str(tmp_path / "moved"), str(tmp_path / "made")
    transferred = CliRunner().invoke(app, ["transfer", llama_folder, gemma_folder, moved, "--json"])
    assert transferred.exit_code == 0
    document = json.loads(transferred.stdout)
    assert document["folder"] == moved
    assert sum(document["new_embeddings"].values()) == len(AutoTokenizer.from_pretrained(moved))
    result = CliRunner().invoke(app, ["apply-transfer", llama_folder, moved, llama_folder, made, "--scale", "0.5"])
    assert result.exit_code == 0, result.output
    assert AutoTokenizer.from_pretrained(made).get_vocab() == AutoTokenizer.from_pretrained(moved).get_vocab()
    wrong = CliRunner().invoke(app, ["apply-transfer", llama_folder, moved, gemma_folder, str(tmp_path / "none")])
    assert wrong.exit_code == 1
    assert "not a fine-tune of this base" in wrong.stderr
