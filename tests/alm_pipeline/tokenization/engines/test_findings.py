"""Findings are read by later processes, as long as nothing that they depend on has changed."""

from pathlib import Path

from alm_pipeline.tokenization.engines.findings import Findings

ANSWER = {"difference": None}


def test_an_answer_is_recalled_by_its_question_and_subject(tmp_path: Path) -> None:
    assert Findings(tmp_path / "new", {"code": "1"}).record("whether", "this", ANSWER) == ANSWER
    later = Findings(tmp_path / "new", {"code": "1"})
    assert later.recall("whether", "this") == ANSWER
    assert later.recall("whether", "that") is None
    assert later.recall("what", "this") is None


def test_an_answer_found_under_other_circumstances_is_not_recalled(tmp_path: Path) -> None:
    circumstances = {"code": "1", "versions": {"kitoken": "0.11.1"}}
    Findings(tmp_path, circumstances).record("whether", "this", ANSWER)
    for changed in ({"code": "2"}, {"versions": {"kitoken": "99"}}):
        assert Findings(tmp_path, {**circumstances, **changed}).recall("whether", "this") is None


def test_a_folder_that_can_not_be_written_to_or_read_costs_nothing_but_the_answers(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = Findings(tmp_path / "file", {})
    assert findings.record("whether", "this", ANSWER) == ANSWER
    assert findings.recall("whether", "this") is None
    findings = Findings(tmp_path / "folder", {})
    findings.record("whether", "this", ANSWER)
    (damaged,) = (tmp_path / "folder").iterdir()
    damaged.write_text("{")
    assert findings.recall("whether", "this") is None
