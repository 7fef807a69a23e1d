"""The pair that makes exposure bias visible: rounds bring the student nearer on what it writes, other steps do not."""

from pathlib import Path

import pytest

from alm_pipeline.methods.units import KL
from alm_pipeline.rounds.measures import USABLE
from alm_pipeline.rounds.on_policy import OnPolicy
from alm_pipeline.rounds.report import RoundsReport
from benchmarks.on_policy import Control, compare, right_steps, tiny_config


@pytest.mark.long
@pytest.mark.timeout(900)
def test_rounds_undo_exposure_bias_where_other_steps_do_not(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "pair", seed=0)
    tables = compare(config, tmp_path / "store")
    off_to_on = {
        row.measure: row.difference
        for row in RoundsReport.of([tables["off-policy"], tables["on-policy"]]).measures
        if row.student
    }
    kl, usable = off_to_on[KL], off_to_on[USABLE]
    assert kl is not None
    assert kl.high is not None
    assert kl.high < 0
    # not because more of its texts were left out
    assert usable is not None
    assert usable.value > -0.05
    before_to_on = {
        row.measure: row.difference
        for row in RoundsReport.of([tables["before"], tables["on-policy"]]).measures
        if row.student
    }
    assert before_to_on[KL] is not None
    assert before_to_on[KL].high < 0  # type: ignore[union-attr,operator]
    root = str(tmp_path / "store")
    on, off = OnPolicy(config, root), Control(config, root)
    assert right_steps(on, 4) > right_steps(off, 4)
