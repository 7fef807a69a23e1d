"""The experiment with two teachers: which teacher has which source, and what all students are measured by."""

from pathlib import Path

import pytest

from alm_pipeline.methods.units import BITS, KL
from alm_pipeline.pipeline import Pipeline
from benchmarks import teachers
from benchmarks.teachers import BEFORE, DOMAINS, ONE, TEACHERS, TWO, configs, run, show, texts_of


def test_sums_are_right() -> None:
    for text in texts_of("sums", 20, 3):
        for part in text.rstrip(".").split("; "):
            left, result = part.split(" = ")
            assert sum(map(int, left.split(" + "))) == int(result)


def test_both_students_are_measured_by_the_specialists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FOR_TEACHERS": 60, "FOR_STUDENTS": 40, "STEPS": 3}.items():
        monkeypatch.setattr(teachers, name, value)
    tables = run(tmp_path, 0, ["train.steps=2"])
    assert set(tables) == {*TEACHERS, BEFORE, *TEACHERS.values()}
    names = [
        {(row["domain"], row["measure"], row["unit"]) for row in tables[of].to_pylist()} for of in (ONE, TWO, BEFORE)
    ]
    assert names[0] == names[1] == names[2]
    assert {(domain, measure) for domain, measure, _ in names[0]} == {(d, m) for d in DOMAINS for m in (BITS, KL)}
    one, two = (Pipeline(config, str(tmp_path / "store")) for config in configs(tmp_path / "models", 0).values())
    assert len({part.teacher.identity for part in one.parts}) == 1
    assert len({part.teacher.identity for part in (*one.parts, *two.parts)}) == 3
    # they have the same texts and tokens, so the specialists' scores are for both
    assert [part.tokens("student").name for part in one.parts] == [part.tokens("student").name for part in two.parts]
    show([tables])
    printed = capsys.readouterr().out
    assert "| two teachers |" in printed
    assert "seeds: 1" in printed
