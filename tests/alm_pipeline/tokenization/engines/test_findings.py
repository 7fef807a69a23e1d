"""Findings are read by later processes, as long as nothing that they depend on has changed."""

from pathlib import Path

import pytest

from alm_pipeline.tokenization.engines.choice import TrialOutcome
from alm_pipeline.tokenization.engines.findings import Findings

ANSWER = TrialOutcome(difference=None, speed=2)


def test_an_answer_is_recalled_by_its_question_and_subject(tmp_path: Path) -> None:
    assert Findings(tmp_path / "new", {"code": "1"}).record("whether", "this", ANSWER) == ANSWER
    later = Findings(tmp_path / "new", {"code": "1"})
    assert later.recall("whether", "this", TrialOutcome) == ANSWER
    assert later.recall("whether", "that", TrialOutcome) is None
    assert later.recall("what", "this", TrialOutcome) is None


def test_an_answer_found_under_other_circumstances_is_not_recalled(tmp_path: Path) -> None:
    circumstances = {"code": "1", "versions": {"fastokens": "0.3.5"}}
    Findings(tmp_path, circumstances).record("whether", "this", ANSWER)
    for changed in ({"code": "2"}, {"versions": {"fastokens": "99"}}):
        assert Findings(tmp_path, {**circumstances, **changed}).recall("whether", "this", TrialOutcome) is None


def test_a_folder_that_can_not_be_written_to_or_read_costs_nothing_but_the_answers(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = Findings(tmp_path / "file", {})
    assert findings.record("whether", "this", ANSWER) == ANSWER
    assert findings.recall("whether", "this", TrialOutcome) is None


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"difference": 5}', b"null", b"\xff\xfe", b"[" * 9999])
def test_a_damaged_finding_is_found_out_again(content: bytes, tmp_path: Path) -> None:
    findings = Findings(tmp_path, {})
    findings.record("whether", "this", ANSWER)
    (damaged,) = tmp_path.iterdir()
    damaged.write_bytes(content)
    assert findings.recall("whether", "this", TrialOutcome) is None
