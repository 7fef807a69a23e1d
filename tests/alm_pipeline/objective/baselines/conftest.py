"""Pieces of one position, of a few, and all positions at once."""

import pytest

from alm_pipeline.objective.baselines import pieces


@pytest.fixture(params=[1, 30, 2**24])
def piece_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE_ELEMENTS", request.param)
