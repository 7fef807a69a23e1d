"""`alm serve` writes the plugin's file, and prints or runs the server's command."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from alm_scores.file import read_file
from typer.testing import CliRunner

from flows.cli.app import app


def test_it_prints_a_command_that_a_shell_understands(llama_folder: str, tmp_path: Path) -> None:
    file = tmp_path / "a folder" / "alm-scores.json"
    arguments = [
        "serve",
        llama_folder,
        "--print",
        "--file",
        str(file),
        "--top-k",
        "4",
        "--host",
        "0.0.0.0",
        "--port",
        "81",
    ]
    result = CliRunner().invoke(app, [*arguments, "--tensor-parallel", "2", "--", "--seed", "7"])
    assert result.exit_code == 0
    variable, *rest = shlex.split(result.stdout)
    assert variable == f"ALM_SCORES_FILE={file}"
    command = rest[rest.index("vllm") :]
    assert command[:3] == ["vllm", "serve", llama_folder]
    for option, value in (("--max-logprobs", "7"), ("--tensor-parallel-size", "2"), ("--seed", "7"), ("--port", "81")):
        assert command[command.index(option) + 1] == value
    found = read_file(file)  # the plugin's own check of it
    assert found.rows == found.width > len(found.boundary_ids) > 0


def test_for_hidden_states_it_prints_a_command_without_the_plugin(
    llama_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["serve", llama_folder, "--hidden-states", "--print"])
    assert result.exit_code == 0
    variable, *command = shlex.split(result.stdout)
    assert variable == "VLLM_NO_USAGE_STATS=1"
    assert command[:3] == ["vllm", "serve", llama_folder]
    pooling = json.loads(command[command.index("--pooler-config") + 1])
    assert pooling == {"task": "token_embed", "use_activation": False}
    assert not list(tmp_path.iterdir())


def test_it_runs_the_command_and_returns_its_status(llama_folder: str, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text("import os, sys\nsys.exit(7 if os.path.isfile(os.environ['ALM_SCORES_FILE']) else 1)\n")
    command = shlex.join([sys.executable, str(script)])
    file = str(tmp_path / "file.json")
    assert CliRunner().invoke(app, ["serve", llama_folder, "--file", file, "--command", command]).exit_code == 7


@pytest.mark.bad_input
def test_a_missing_command_is_named(llama_folder: str, tmp_path: Path) -> None:
    arguments = ["serve", llama_folder, "--file", str(tmp_path / "file.json"), "--command", "no-such-server"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "no-such-server: can't be started" in result.stderr
    assert "--print" in result.stderr
