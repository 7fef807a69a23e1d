"""The shift of sentiment in SmolLM2-135M: the clear effect that edits have on a small real model."""

from pathlib import Path

import pytest

from alm_pipeline.editing.directions.settings import (
    ActivationConfig,
    DemonstrationsConfig,
    EditConfig,
    EditEvaluationConfig,
)
from alm_pipeline.editing.edit import Editing
from benchmarks.editing import MODEL, write_sentiment


@pytest.mark.long
def test_a_mean_shift_moves_the_sentiment_and_leaves_other_texts(tmp_path: Path) -> None:
    write_sentiment(tmp_path)
    demonstrations = DemonstrationsConfig(url=str(tmp_path / "sentiment.jsonl"))
    evaluation = EditEvaluationConfig(contrasts=str(tmp_path / "sentiment-held-out.jsonl"))
    for strength in (0.5, -0.5):
        edit = EditConfig(method="mean_shift", strength=strength, layers="20-29", fold="always")
        read = ActivationConfig(dtype="float32")
        editing = Editing(MODEL, demonstrations, str(tmp_path / "store"), read, edit)
        control, odds = editing.run(tmp_path / f"edited{strength}", evaluation).measures
        assert odds["difference"]["value"] * strength > 0
        assert abs(odds["difference"]["value"]) >= 0.4
        assert control["after"] - control["before"] <= 0.04
