"""The command and the flow of edits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.schemas.objects import Artifact
from typer.testing import CliRunner

from alm_pipeline.editing.directions.settings import ActivationConfig, DemonstrationsConfig, EditConfig
from flows.cli.app import app
from flows.model_flows import edit


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    file = tmp_path / "pairs.jsonl"
    rows = [{"question": f"Is {k} even?", "right": f" It is {k}", "wrong": f" It is {k + 1}"} for k in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def arguments(model: str, folder: Path, pairs: str, *more: str) -> list[str]:
    columns = ["--prompt", "question", "--positive", "right", "--negative", "wrong"]
    places = ["--layers", "1", "--dtype", "float32", "--neutral-tokens", "2", "--storage", str(folder.parent / "store")]
    return ["edit", model, str(folder), "--demonstrations", pairs, *columns, *places, *more]


def test_an_edit_from_the_command_line(llama_folder: str, pairs: str, tmp_path: Path) -> None:
    contrasts = shutil.copy(pairs, tmp_path / "contrasts.jsonl")
    options = ["--method", "mean_shift", "--contrasts", str(contrasts)]
    result = CliRunner().invoke(app, arguments(llama_folder, tmp_path / "edited", pairs, *options))
    assert result.exit_code == 0, result.output
    assert "folded into 1 layers' weights, exactly" in result.stdout
    assert "30 demonstrations; left out: none" in result.stdout
    assert "control bits per byte" in result.stdout
    assert "log-odds of positive answers" in result.stdout
    for kind in ("demonstrations", "activations"):
        (dataset,) = (tmp_path / "store" / kind).iterdir()
        shown_rows = CliRunner().invoke(app, ["head", str(dataset), "-n", "1"])
        assert shown_rows.exit_code == 0, shown_rows.output
        assert "row pairs.jsonl:0\n" in shown_rows.stdout
        assert "positive:\n" in shown_rows.stdout
    again = CliRunner().invoke(app, arguments(llama_folder, tmp_path / "edited", pairs, *options, "--json"))
    document = json.loads(again.stdout)
    assert document["record"]["rows"] == 30
    assert [measure["items"] for measure in document["measures"]][1] == 30
    assert f"{document['measures'][0]['after']:.4f}" in result.stdout


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--energy", "0"), "energy: Input should be greater than 0"),
        (("--method", "mean_shift", "--nonlinearity", "tanh"), "has no nonlinearity"),
        (("--layers", "last:9"), "the model has 2 layers"),
        (("--fold", "always", "--where", "residual"), "LlamaDecoderLayer"),
        (("--tasks", "no-such-task", "--task-folder", "."), "lm_eval has no such task"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    llama_folder: str, pairs: str, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(app, arguments(llama_folder, tmp_path / "edited", pairs, *options))
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_tasks_are_run_before_and_after(llama_folder: str, pairs: str, tmp_path: Path) -> None:
    task = {
        "task": "evens",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": pairs}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["{{right}}", "{{wrong}}"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "evens.yaml").write_text(json.dumps(task))
    options = ["--tasks", "evens", "--task-folder", str(tmp_path / "tasks"), "--limit", "20", "--json"]
    result = CliRunner().invoke(app, arguments(llama_folder, tmp_path / "edited", pairs, *options))
    assert result.exit_code == 0, result.output
    measure = json.loads(result.stdout)["measures"][-1]
    assert (measure["name"], measure["items"]) == ("evens acc", 20)
    assert measure["difference"]["low"] <= measure["after"] - measure["before"] <= measure["difference"]["high"]


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_server")
def test_the_flow_edits_and_shows(
    llama_folder: str, pairs: str, tmp_path: Path, shown: Callable[[str], list[Artifact]]
) -> None:
    demonstrations = DemonstrationsConfig(url=pairs, prompt="question", positive="right", negative="wrong")
    result = edit(
        llama_folder,
        str(tmp_path / "edited"),
        demonstrations,
        str(tmp_path / "store"),
        ActivationConfig(dtype="float32", neutral_tokens=2),
        EditConfig(layers="1", fold="never"),
    )
    assert result["record"]["not_folded"] == "fold: never"
    (row,) = json.loads(shown("alm-edit")[0].data)
    assert row["measure"] == "control bits per byte"
    assert row["before"] == f"{result['measures'][0]['before']:.4f}"
    assert (tmp_path / "edited" / "modeling_edited.py").is_file()
