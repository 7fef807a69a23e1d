"""The script for a GPU runs small on a processor, without Polars and Prefect, and no section takes others with it."""

import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.device import __main__ as script
from benchmarks.device.measuring import Line

ROOT = Path(__file__).parents[2]
WITHOUT = """
import runpy, sys
for name in ("polars", "prefect", "fastokens", "datasets"):
    sys.modules[name] = None  # importing it raises
sys.argv = ["device", "--small", "--output", sys.argv[1]]
runpy.run_module("benchmarks.device", run_name="__main__")
"""


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple["subprocess.CompletedProcess[str]", dict[str, Any]]:
    output = tmp_path_factory.mktemp("device") / "device.json"
    command = [sys.executable, "-c", WITHOUT, str(output)]
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
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
    yield Line("one", 3.0, limit=2.0)
    time.sleep(60)
    yield Line("never", 1.0)


def dying() -> Iterator[Line]:
    yield Line("one", 1.0)
    time.sleep(0.2)  # what is sent has left
    os._exit(3)


@pytest.mark.parametrize(
    ("run", "error", "lines"),
    [
        (steady, "", ["one", "two"]),
        (breaking, "RuntimeError: CUDA error: an illegal memory access", ["one"]),
        (hanging, "ended after 1 s, its time", ["one"]),
        (dying, "its process ended with status 3", ["one"]),
    ],
)
def test_a_section_ends_alone(run: Any, error: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SECTIONS", {"tried": script.Section(run, 1.0)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        section = script.run_apart("tried", 1.0, "fork")
    assert section["error"] == error
    assert [line.what for line in section["lines"]] == lines
    shown = script.table({"tried": section})
    assert ("FAILED" in shown) == bool(error)
    assert ("WRONG" in shown) == (run in (breaking, hanging))
    assert "one" in shown


def test_a_value_that_is_no_number_is_wrong() -> None:
    assert Line("x", math.nan, limit=1.0).is_wrong
    assert Line("x", "text", limit=1.0).is_wrong
    assert not Line("x", 1.0, limit=1.0).is_wrong
    assert not Line("x", math.nan).is_wrong
