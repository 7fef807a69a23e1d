"""`alm calibrate`: its table, its JSON, its files, and what it says of wrong options."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli.app import app
from flows.terminal import console

FILES = {
    "calibration.json",
    "calibration.md",
    "frontier.parquet",
    "frontier.png",
    "reliability.parquet",
    "reliability.png",
}


@pytest.fixture
def questions(tmp_path: Path) -> str:
    rows = [{"q": f"Natalia sold {k}", "options": ["clips", "brown fox"], "answer": k % 2} for k in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "questions.jsonl")


def calibrate(tmp_path: Path, *arguments: str) -> Result:
    places = ("--storage", str(tmp_path / "store"), "--output", str(tmp_path / "out"))
    return CliRunner().invoke(app, ["calibrate", *arguments, *places])


def test_models_of_two_tokenizers_side_by_side(
    llama_folder: str, gemma_folder: str, questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "_width", 300)
    options = ("--questions", questions, "--prompt", "q", "--choices", "options", "--reading", "bytes")
    result = calibrate(tmp_path, llama_folder, gemma_folder, *options)
    assert result.exit_code == 0, result.output
    assert "8 questions in 8 clusters, reading `bytes`, 10 bins" in result.stdout
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    as_json = json.loads(calibrate(tmp_path, llama_folder, gemma_folder, *options, "--json").stdout)
    assert [row["model"] for row in as_json["models"]] == [llama_folder, gemma_folder]
    assert as_json["verdicts"] == []
    assert as_json["questions"] == {"all": 8, "validation": 4, "test": 4}
    for row in as_json["models"]:
        value, low, high = row["nll"]
        assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in result.stdout
        assert low <= value <= high


def test_a_sweep_between_a_model_and_its_copy(llama_folder: str, questions: str, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(llama_folder, tmp_path / "copy")
    options = ("--questions", questions, "--prompt", "q", "--choices", "options", "--weights", "0:1:0.5", "--json")
    found = json.loads(calibrate(tmp_path, llama_folder, str(copy), *options).stdout)
    names = [row["model"].partition(", T")[0] for row in found["models"]]
    assert names == ["base", "λ = 0.5", "tuned", "tuned"]
    assert [row["nll"][0] for row in found["models"][:3]] == pytest.approx([found["models"][0]["nll"][0]] * 3)
    assert [verdict["chosen"] for verdict in found["verdicts"]] == [None] * 3  # none has a lower NLL than the base


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "0:1"), "write FROM:TO:STEP, or weights with commas"),
        (("--method", "ties"), "are of merges: name their weights too"),
        (("--weights", "0.5"), "--weights: name a base model and its tuned child, not 1 models"),
        (("--answer", "label"), "label"),
        (("--limit", "2"), "at least 4 are needed"),
    ],
)
def test_wrong_options_are_named(
    llama_folder: str, questions: str, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    given = ("--questions", questions, "--prompt", "q", "--choices", "options")
    result = calibrate(tmp_path, llama_folder, *given, *options)
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.replace("│", "").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.bad_input
def test_neither_a_file_nor_a_task_is_said(llama_folder: str, tmp_path: Path) -> None:
    result = calibrate(tmp_path, llama_folder, "--questions", "gone.jsonl")
    assert result.exit_code == 1
    assert "gone.jsonl" in result.stderr


def test_next_bytes_of_texts(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    rows = [{"text": f"Natalia sold {k} clips in April."} for k in range(6)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--corpus", str(tmp_path / "texts.jsonl"), "--places", "4", "--json", "--resamples", "50")
    found = json.loads(calibrate(tmp_path, llama_folder, gemma_folder, *options).stdout)
    assert found["title"] == "next bytes: models side by side"
    assert found["questions"] == {"all": 24, "validation": 12, "test": 12}
    for row in found["models"]:
        assert 0 < row["confidence"][0] < 1
    copied = str(shutil.copytree(llama_folder, tmp_path / "copy"))
    swept = calibrate(tmp_path, llama_folder, copied, *options, "--weights", "0.5")
    assert swept.exit_code == 0, swept.output
    assert json.loads(swept.stdout)["questions"]["test"] == 12


@pytest.mark.bad_input
def test_questions_and_a_corpus_are_one_or_the_other(llama_folder: str, questions: str, tmp_path: Path) -> None:
    for options in ((), ("--questions", questions, "--corpus", questions)):
        result = calibrate(tmp_path, llama_folder, *options)
        assert result.exit_code == 1
        assert "name either questions, or a corpus" in result.stderr
