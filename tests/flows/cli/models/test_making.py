"""The commands that make a model of others."""

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from flows.cli.app import app


def test_a_merge_lies_between_its_parents(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(llama_folder)
    child = copy.deepcopy(base)
    for value in child.parameters():
        value.data += 0.1
    child.save_pretrained(tmp_path / "child")
    for file in Path(llama_folder).glob("*token*"):
        (tmp_path / "child" / file.name).write_bytes(file.read_bytes())
    made = str(tmp_path / "made")
    parents = [llama_folder, str(tmp_path / "child")]
    result = CliRunner().invoke(app, ["merge", *parents, made, "--weight", "0.25"])
    assert result.exit_code == 0, result.output
    assert "linear, weight 0.25" in result.stdout
    merged = AutoModelForCausalLM.from_pretrained(made).state_dict()
    for name, value in base.state_dict().items():
        torch.testing.assert_close(merged[name], value + 0.025, rtol=1e-5, atol=1e-6)
    again = CliRunner().invoke(app, ["merge", *parents, made])
    assert (again.exit_code, "exists already" in again.stderr) == (1, True)
    wrong = CliRunner().invoke(app, ["merge", llama_folder, gemma_folder, str(tmp_path / "none")])
    assert (wrong.exit_code, "one architecture" in wrong.stderr) == (1, True)
