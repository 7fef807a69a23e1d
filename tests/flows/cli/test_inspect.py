"""`alm inspect`, on alignments written by hand."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli.app import app
from flows.cli.inspection import _said
from tests.alm_pipeline.inspection.datasets import Chunk, Row, Side, write


@pytest.fixture
def url(tmp_path: Path) -> str:
    row = Row(
        "0-1", "a[b]東", Side([(1, 0, 4), (2, 4, 7)]), Side([(1, 0, 4), (2, 4, 7)]), [Chunk(1, 1, 4), Chunk(1, 1, 3)]
    )
    return write(tmp_path, [[Row("0-0", "x", Side(dropped="too_long"), Side([(1, 0, 1)]), []), row], []]).url


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_chunks_are_shown(url: str) -> None:
    shown = inspect(url, "--chunks", 1)
    assert "'a[b]'" in shown.stdout
    assert "東" not in shown.stdout
    assert "1 of 2 chunks of this example, 2 in the shard" in shown.stdout


def test_a_summary_is_shown(url: str) -> None:
    shown = inspect(url, "--summary").stdout
    assert "Han" in shown
    assert "too_long" in shown
    assert "'a[b]'" in shown


@pytest.mark.parametrize(("suffix", "begins"), [(".html", b"<!doctype html>"), (".png", b"\x89PNG")])
def test_a_picture_is_written(url: str, tmp_path: Path, suffix: str, begins: bytes) -> None:
    if suffix == ".png":
        pytest.importorskip("PIL")
        pytest.importorskip("fontTools")
    file = tmp_path / f"picture{suffix}"
    assert "1 of 2 chunks" in inspect(url, "--picture", file, "--chunks", 1).stdout
    assert file.read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "picture.pdf"], "not an .html or .png file"),
        (["--picture", "no/such/folder/picture.html"], "can't be written (No such file or directory)"),
        (["--shard", "1"], "shard 1 has no chunks"),
        (["--example", "0-0"], "example 0-0 has no chunks"),
        (["--example", "0-0", "--picture", "picture.html"], "example 0-0 has no chunks"),
    ],
)
def test_mistakes_are_reported(url: str, arguments: list[str], message: str) -> None:
    result = inspect(url, *arguments)
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr


def test_a_missing_package_is_named(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = inspect(url, "--picture", tmp_path / "picture.png")
    assert result.exit_code == 1
    assert "needs PIL: pip install 'alm-pipeline[pictures]'" in result.stderr


def test_thoughts_and_calls_are_shown_after_their_role() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "Bern"}}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "reasoning": "Hm.", "tool_calls": [call, call]},
        {"role": "assistant", "content": ""},
    ]
    assert list(_said(messages)) == [
        "user: Weather?",
        "assistant, reasoning: Hm.",
        'assistant, call: look{"at": "Bern"}',
        'assistant, call: look{"at": "Bern"}',
        "assistant: ",
    ]
