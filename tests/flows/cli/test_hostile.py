"""What the commands print is inert, readable and complete, whatever the store holds and wherever it is printed."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from typer.main import get_command
from typer.testing import CliRunner

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from flows.cli.app import app
from flows.terminal import console
from flows.terminal.console import InertConsole
from storage.printed.inert import one_line
from tests.flows.cli.hostile import NAME, read_only_commands, write_store
from tests.flows.loopback import ROOT

pytestmark = pytest.mark.bad_input

WRITING = {
    "run",
    "deploy",
    "transfer",
    "apply-transfer",
    "byte-level",
    "evaluate",
    "merge",
    "calibrate",
    "edit",
    "compare-methods",
    "make-task",
    "hypernet",
    "serve",
    "on-policy",
    "write",
}
"""commands that print only names and counts, or need more than a store"""
RAW = re.compile("[^\n\t -~\xa0-\U0010ffff]|[\u200b-\u200f\u2028-\u202e\u2060-\u206f]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def pipeline(folder: Path, config: AlmConfig) -> Pipeline:
    written = write_store(folder, config)
    (folder / "mine.yaml").write_text(yaml.safe_dump(written.config.model_dump(mode="json")))
    return written


@pytest.fixture(scope="module")
def commands(pipeline: Pipeline, folder: Path) -> dict[str, list[str]]:
    return read_only_commands(pipeline, folder)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "_width", 200)


def test_every_command_is_listed(commands: dict[str, list[str]]) -> None:
    used = {arguments[0] for arguments in commands.values()}
    assert set(get_command(app).commands) - WRITING <= used  # type: ignore[attr-defined]


def test_no_command_prints_anything_raw(commands: dict[str, list[str]], wide: None) -> None:
    raw, failed = {}, {}
    for name, arguments in commands.items():
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            failed[name] = repr(result.exception)
        output = result.stdout_bytes.decode() + result.stderr_bytes.decode()
        if found := RAW.findall(output):
            raw[name] = found
        if "\U0001f604" in output:  # :smile:
            raw[name] = ["an emoji"]
    assert failed == {}
    assert raw == {}


def test_names_are_whole_and_pages_are_clean(pipeline: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "_width", 1000)
    listed = CliRunner().invoke(app, ["list", pipeline.root]).stdout
    assert r"e\x1b[31mv\x9b2Jil[bold]m[red]|`x`<b>:smile:\u202e$\frac{$\x07\nline" in listed
    assert r"\xff\x1b[1m[bold]" in listed
    page = folder / "page.html"
    assert CliRunner().invoke(app, ["inspect", pipeline.alignments.url, "--picture", str(page)]).exit_code == 0
    assert RAW.findall(page.read_text().replace("\u200d", "")) == []
    assert "<script" not in page.read_text()
    card = (pipeline.student.path / "README.md").read_text()
    assert RAW.findall(card) == []
    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card)
    kinds = {part.type for token in parsed for part in (token, *(token.children or ()))}
    assert "code_inline" in kinds
    assert kinds & {"html_inline", "html_block"} == set()


def _run_all(commands: dict[str, list[str]], folder: Path, how: str, environment: dict[str, str]) -> dict[str, int]:
    folder.mkdir()
    # bytes, since the arguments may not be UTF-8
    (folder / "commands.json").write_text(
        json.dumps({name: [list(os.fsencode(part)) for part in line] for name, line in commands.items()})
    )
    command = (sys.executable, "-m", "tests.flows.cli.every_command", str(folder / "commands.json"), str(folder), how)
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env={**os.environ, **own, **environment}, cwd=ROOT, check=True)
    codes: dict[str, int] = json.loads((folder / "codes.json").read_text())
    return codes


NARROW_AND_ASCII = {
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "COLUMNS": "40",
    "FORCE_COLOR": "1",  # as on a terminal
    "TERM": "dumb",
    "NO_COLOR": "1",
}


def test_every_command_prints_in_ascii_and_forty_columns(
    commands: dict[str, list[str]], pipeline: Pipeline, tmp_path: Path
) -> None:
    codes = _run_all(commands, tmp_path / "ascii", "file", NARROW_AND_ASCII)
    for number, name in enumerate(commands):
        for stream in ("out", "err"):
            output = (tmp_path / "ascii" / f"{number}.{stream}").read_bytes()
            assert output.isascii(), name
            assert b"Traceback" not in output, output.decode()
            assert b"\x1b" not in output, name
    assert {name: code for name, code in codes.items() if code not in (0, 1, 2)} == {}
    assert codes["list"] == codes["inspect"] == codes["compare"] == 0
    listed = (tmp_path / "ascii" / "0.out").read_text()
    assert listed.count("state: complete") == len(pipeline.caches) + 1
    assert listed.count(f"name: {one_line(pipeline.alignments.name)}\n") == 1


def test_every_command_ends_quietly_when_its_reader_has_gone(commands: dict[str, list[str]], tmp_path: Path) -> None:
    codes = _run_all(commands, tmp_path / "broken", "broken pipe", {})
    errors = {name: (tmp_path / "broken" / f"{number}.err").read_text() for number, name in enumerate(commands)}
    assert {name: text for name, text in errors.items() if "Traceback" in text or "BrokenPipe" in text} == {}
    printing = [name for name in codes if name.split()[0] in ("list", "verify", "lineage", "describe", "generate")]
    assert {codes[name] for name in printing} == {141}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{} list {} >&-", 0),
        ("{} list {} 2>&-", 0),
        ("{} list {} <&- >&- 2>&-", 0),
        ("{} list nothing-here >&- 2>&-", 1),
        ("{} list {} | head -1", 141),
        ("{} list {} > /dev/full", 1),
    ],
)
def test_closed_streams_are_no_errors(pipeline: Pipeline, tmp_path: Path, line: str, code: int) -> None:
    alm = f"{shlex.quote(sys.executable)} -m alm_pipeline"
    shell = f"set -o pipefail; cd {shlex.quote(str(tmp_path))}; {line.format(alm, shlex.quote(pipeline.root))}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode in (code, 0 if "head" in line else code), done.stderr
    assert list(tmp_path.iterdir()) == []
    if "full" in line:
        assert done.stderr == "error: the output can't be written: No space left on device\n"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_word_is_broken_that_fits(width: int) -> None:
    rows = [("not complete", "steps=2000", "a much longer text of many words " * 4), ("complete", "γ=0.2", "short")]
    terminal = InertConsole(width=width, record=True, file=io.StringIO())
    terminal.print_table(("state", "name", "text"), rows)
    shown = terminal.export_text()
    assert "│ not complete │ steps=2000 │ a much longer text" in shown
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("longer") == 4


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 300])
def test_a_table_is_whole_at_any_width(width: int) -> None:
    header = ("kind", "name", "rows", "state")
    rows = [("teacher_scores", f"a-long-name-of-a-dataset-{'0123456789abcdef' * 3}", "1,234,567", "not complete")] * 2
    terminal = InertConsole(width=width, record=True, file=io.StringIO())
    terminal.print_table(header, rows, NAME)
    shown = terminal.export_text()
    together = re.sub(r"[\s│┃┏┓└┘┌┐├┤━─╇╈┡┩]", "", shown)
    for cell in rows[0]:
        for word in cell.split():
            assert shown.count(word) == 2 or all(part in together for part in re.findall(".{1,15}", word)), (
                word,
                shown,
            )
    assert "…" not in shown
