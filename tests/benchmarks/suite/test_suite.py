"""The whole suite with models of a few thousand parameters: what is there is not made again."""

import gzip
import json

import pytest

from benchmarks.suite.factors import Experiment, PairName, Variant, objective
from benchmarks.suite.outcomes import run_experiment
from benchmarks.suite.runs import SIZES, Suite

EXPERIMENT = Experiment("?", (Variant("end", objective("alm", debias="end")), Variant("sft", objective("sft"))))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    root = tmp_path_factory.mktemp("suite")
    rows = [{"question": f"How much is {n} and {n}?", "answer": f"It is {2 * n}. " * 9} for n in range(300)]
    (root / "gsm8k.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return Suite(root / "store", root / "gsm8k.jsonl.gz", "tuning", SIZES["tiny"])


@pytest.mark.long
@pytest.mark.parametrize("pair", ["bpe", "bytes", "body"])
def test_students_are_trained_and_measured_once(suite: Suite, pair: PairName) -> None:
    found = run_experiment(suite, EXPERIMENT, pair, [0])
    columns = found["end"][0]
    assert [name for name in columns if "KL" in name] == ["python, KL", "english, KL", "maths, KL"]
    assert all(value is None or value > 0 for rows in found.values() for row in rows for value in row.values())
    students = sorted((suite.root / "students").iterdir())
    times = [(student / "manifest.json").stat().st_mtime_ns for student in students]
    assert run_experiment(suite, EXPERIMENT, pair, [0]) == found
    assert sorted((suite.root / "students").iterdir()) == students
    assert [(student / "manifest.json").stat().st_mtime_ns for student in students] == times
