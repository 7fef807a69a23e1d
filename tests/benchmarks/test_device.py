"""The script for a GPU runs small on a processor, without Polars and Prefect, and no section takes others with it."""

import json
import math
import os
import re
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.device import __main__ as script
from benchmarks.device.measuring import Line

ROOT = Path(__file__).parents[2]
THERE = {"accelerate", "filelock", "fsspec", "numba", "numpy", "psutil", "pyarrow", "regex", "safetensors"}
THERE |= {"tokenizers", "torch", "transformers", "pyyaml", "huggingface-hub"}
"""what the machine with a GPU has, of this project's dependencies that are needed there"""
CARRIED = {"pydantic", "pydantic-core", "annotated-types"}
WITHOUT = """
import runpy, sys
for name in sys.argv[1].split():
    sys.modules[name] = None  # importing it raises
sys.argv = ["device", "--small", "--output", *sys.argv[2:]]
runpy.run_module("benchmarks.device", run_name="__main__")
"""
MODULES = {"jinja2": "jinja2", "pyyaml": "yaml", "pillow": "PIL", "fonttools": "fontTools", "lm-eval": "lm_eval"}


def absent_modules() -> list[str]:
    """The modules of all dependencies and extras that are not named above; a library's own needs are not among them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for name, names in project["optional-dependencies"].items() if name != "dev" for each in names]
    names = {re.split(r"[><=;\[ ]", each)[0] for each in (*project["dependencies"], *extras)} - {"alm-pipeline"}
    absent = names - THERE - CARRIED - {"peft", "triton", "liger-kernel"}
    # transformers and huggingface-hub import these
    absent -= {"httpx", "jinja2", "markupsafe", "typer", "rich", "scipy"}
    return sorted(MODULES.get(name, name.replace("-", "_")) for name in absent)


def run_small(output: Path, *arguments: str, without: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", WITHOUT, " ".join(without), str(output), *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple["subprocess.CompletedProcess[str]", dict[str, Any]]:
    output = tmp_path_factory.mktemp("device") / "device.json"
    absent = absent_modules()
    assert {"polars", "prefect", "fastokens", "orjson", "tenacity", "datasets"} <= set(absent)
    done = run_small(output, without=absent)
    return done, json.loads(output.read_text()) if output.exists() else {}


def test_every_section_runs_small_and_is_right(small_run: tuple[Any, dict[str, Any]]) -> None:
    done, content = small_run
    assert done.returncode == 0, done.stderr + done.stdout
    assert list(content["sections"]) == list(script.SECTIONS)
    for name, section in content["sections"].items():
        assert section["error"] == "", name
        assert section["lines"], name
        for line in section["lines"]:
            assert not line["is_wrong"], line
            assert isinstance(line["value"], str) or math.isfinite(line["value"]), line


def test_the_table_comes_last_and_has_every_line(small_run: tuple[Any, dict[str, Any]]) -> None:
    done, content = small_run
    for name, section in content["sections"].items():
        assert f"\n{name} (" in done.stdout
        for line in section["lines"]:
            assert f"  {line['what']}: " in done.stdout


def test_checks_are_made_of_the_head_scores_training_and_sharding(small_run: tuple[Any, dict[str, Any]]) -> None:
    _, content = small_run
    checked = {
        name: sum(line["limit"] is not None for line in section["lines"])
        for name, section in content["sections"].items()
    }
    # the numbers and their gradients of each way, in two dtypes, with entropy or not, which torch's has not
    assert checked["head_correctness"] == (20 if find_spec("triton") else 12)
    assert checked["scoring_correctness"] == 4
    assert checked["training_correctness"] == 3
    assert checked["fsdp"] == 2


def steady() -> Iterator[Line]:
    yield Line("one", 1.0, "s", limit=2.0)
    yield Line("two", "text")


def breaking() -> Iterator[Line]:
    yield Line("one", math.nan, limit=2.0)
    raise RuntimeError("CUDA error: an illegal memory access\nmore")


def hanging() -> Iterator[Line]:
    yield Line("one", float(os.getpid()), limit=2.0)
    time.sleep(60)
    yield Line("never", 1.0)


def dying() -> Iterator[Line]:
    yield Line("one", 1.0)
    time.sleep(0.2)  # what is sent has left
    os._exit(3)


def leaving() -> Iterator[Line]:
    """Leaves a process behind that holds its pipe, as a compiler's workers do."""
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    yield Line("one", float(child))


def leaving_and_dying() -> Iterator[Line]:
    yield from leaving()
    time.sleep(0.2)
    os._exit(4)


@pytest.mark.parametrize(
    ("run", "error", "lines"),
    [
        (steady, "", ["one", "two"]),
        (breaking, "RuntimeError: CUDA error: an illegal memory access", ["one"]),
        (hanging, "ended after 1 s, its time", ["one"]),
        (dying, "its process ended with status 3", ["one"]),
        (leaving, "", ["one"]),
        (leaving_and_dying, "its process ended with status 4", ["one"]),
    ],
)
def test_a_section_ends_alone(run: Any, error: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name, budget = run.__name__, 3.0 if run is leaving_and_dying else 1.0
    monkeypatch.setattr(script, "SECTIONS", {name: script.Section(__name__, budget)})
    recorded: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        section = script.run_apart(name, budget, "fork", lambda content: recorded.append(dict(content)))
    assert section["error"] == error
    assert [line.what for line in section["lines"]] == lines
    assert [content["error"] for content in recorded] == ["not ended yet"] * len(lines)
    if run in (leaving, leaving_and_dying):
        assert is_gone(int(section["lines"][0].value))
    shown = script.table({name: section})
    assert ("FAILED" in shown) == bool(error)
    assert ("WRONG" in shown) == (run in (breaking, hanging))
    assert "one" in shown


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or does within ten seconds."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or not psutil.wait_procs([process], timeout=10)[1]
    except psutil.NoSuchProcess:
        return True


def test_a_section_that_cannot_be_imported_takes_no_other_with_it(tmp_path: Path) -> None:
    """And what is written is there as soon as it is known."""
    sections = ["reader", "environment", "attention"]
    done = run_small(tmp_path / "device.json", "--section", *sections, without=["alm_pipeline.training.data"])
    assert done.returncode == 1
    content = json.loads((tmp_path / "device.json").read_text())["sections"]
    assert list(content) == sections
    assert content["environment"]["error"] == ""
    for name in ("reader", "attention"):
        assert content[name]["error"].startswith(("ModuleNotFoundError", "ImportError"))
    assert "FAILED" in done.stdout
    assert not (tmp_path / "device.json.part").exists()


def test_a_killed_run_leaves_no_section_behind(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from benchmarks.device import __main__ as script\n"
        "script.SECTIONS = {'hanging': script.Section('tests.benchmarks.test_device', 60)}\n"
        "script.main()\n"
    )
    output = tmp_path / "device.json"
    command = [sys.executable, "-c", code, "--small", "--output", str(output)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as run:
        while not output.exists():
            assert run.poll() is None
            time.sleep(0.1)
        (line,) = json.loads(output.read_text())["sections"]["hanging"]["lines"]
        run.kill()
    assert is_gone(int(line["value"]))


def test_a_report_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.write({}, tmp_path / "missing" / "device.json")
    assert "No such file or directory" in capsys.readouterr().err


def test_what_is_left_of_the_time_ends_the_sections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sections that hang take their time, no more than is left, and those after them are not started."""
    sections = {"hanging": script.Section(__name__, 60), "steady": script.Section(__name__, 60)}
    monkeypatch.setattr(script, "SECTIONS", sections)
    monkeypatch.setattr(script, "STARTED", time.monotonic())
    monkeypatch.setattr(script, "TOTAL_S", 6.0)
    monkeypatch.setattr(sys, "argv", ["device", "--small", "--output", str(tmp_path / "device.json")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert script.main() == 1
    content = json.loads((tmp_path / "device.json").read_text())["sections"]
    assert content["hanging"]["error"].startswith("ended after ")
    assert [line["what"] for line in content["hanging"]["lines"]] == ["one"]
    assert content["steady"]["error"] == "not started: no time was left"


def test_a_value_that_is_no_number_is_wrong() -> None:
    assert Line("x", math.nan, limit=1.0).is_wrong
    assert Line("x", "text", limit=1.0).is_wrong
    assert not Line("x", 1.0, limit=1.0).is_wrong
    assert not Line("x", math.nan).is_wrong
