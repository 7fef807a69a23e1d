"""A student that could be perfect: it stays so if both ends of chunks are debiased, and walks away otherwise."""

from pathlib import Path

import pytest
import torch

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.pipeline import Pipeline
from benchmarks.toy import TableStudent, objectives, prepared, train
from tests.exact_words import drawn_words


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, TableStudent]:
    root: Path = tmp_path_factory.mktemp("toy")
    pipeline, model = prepared(root, drawn_words(800), (800, 330), texts=4)
    return pipeline, TableStudent(model)


def test_the_truth_is_no_distance_from_the_text(toy: tuple[Pipeline, TableStudent]) -> None:
    _, table = toy
    assert table.kl(table.truth()) == pytest.approx(0, abs=1e-6)
    assert table.kl(torch.zeros(len(table.edges))) > 0.3


def test_a_perfect_student_stays_only_if_both_ends_are_debiased(toy: tuple[Pipeline, TableStudent]) -> None:
    pipeline, table = toy
    forms: dict[str, ObjectiveConfig] = {
        objective.debias: objective
        for _, objective in objectives()
        if "alm" in objective.terms and objective.chunking == "boundary"
    }
    after = {form: table.kl(train(pipeline, table, forms[form], table.truth(), steps=10)) for form in forms}
    assert set(after) == {"none", "end", "both"}
    assert after["both"] < 1e-4
    assert min(after["none"], after["end"]) > 3e-3
