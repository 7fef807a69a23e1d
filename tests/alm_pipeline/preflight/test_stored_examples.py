"""What the stored examples show before the teacher scores them, and what stored scores show before a training."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from alm_pipeline.config import AlmConfig, Chunking, Debias, Divergence, FilesSource, ObjectiveConfig, Term
from alm_pipeline.config.objective import Balance
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.overrides import Overrides, override
from storage.errors import UserError

pytestmark = pytest.mark.bad_input


def aligned(config: AlmConfig, root: Path, **corpus: object) -> Pipeline:
    """Everything up to the alignments, without the checks that come first."""
    pipeline = Pipeline(config.model_copy(update={"corpus": config.corpus.model_copy(update=corpus)}), str(root))
    pipeline.shard()
    pipeline.tokenize("teacher")
    pipeline.tokenize("student")
    pipeline.align()
    return pipeline


@pytest.mark.parametrize(
    ("held_out", "message"),
    [(0.0, "no example is held out, so nothing can be evaluated"), (1 - 1e-9, "no example to train on")],
)
def test_an_empty_split_is_known_before_the_teacher_scores(
    held_out: float, message: str, config: AlmConfig, tmp_path: Path
) -> None:
    pipeline = aligned(config, tmp_path, held_out=held_out)
    with pytest.raises(UserError, match=message):
        pipeline.require_examples()


def test_texts_without_a_prediction_are_known_before_the_teacher_scores(config: AlmConfig, tmp_path: Path) -> None:
    file = tmp_path / "letters.jsonl"
    file.write_text("\n".join(json.dumps({"text": letter}) for letter in "abcdefghij" * 9))
    pipeline = aligned(config, tmp_path / "data", source=FilesSource(urls=(str(file),)))
    with pytest.raises(UserError, match="no token with a prediction covers a byte of the texts"):
        pipeline.require_examples()


def test_sound_examples_pass_and_gamma_is_compared_with_stored_scores(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = aligned(config, tmp_path)
    pipeline.require_examples()
    pipeline.score()
    high = override(config, Overrides(gamma=0.9999))
    (found,) = Pipeline(high, str(tmp_path)).preflight()
    assert (found.field, found.value, found.severity) == ("objective.gamma", "0.9999", "warning")
    assert "scored examples: the teacher's highest probability of a boundary token in it is 0." in found.sentence
    assert Pipeline(config, str(tmp_path)).preflight() == []


def test_a_store_with_scores_takes_a_run_that_has_yet_to_make_its_tokenizer(config: AlmConfig, tmp_path: Path) -> None:
    aligned(config, tmp_path).score()
    new = override(config, Overrides(settings={"student.tokenizer": {"vocab_size": 300}}))
    assert Pipeline(new, str(tmp_path)).preflight() == []


CHOICES = {"chunking": Chunking, "debias": Debias, "divergence": Divergence, "balance": Balance}
OBJECTIVES = [
    *({"terms": {term: 1.0}} for term in get_args(Term)),
    *({field: value} for field, values in CHOICES.items() for value in get_args(values)),
]


@pytest.fixture(scope="module")
def scored(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    top = config.model_copy(update={"score": config.score.model_copy(update={"top_k": 4})})
    pipeline = aligned(top, tmp_path_factory.mktemp("scored"))
    pipeline.score()
    return pipeline


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_no_check_fails_on_stored_scores_whatever_the_objective(
    scored: Pipeline, objective: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    chosen = scored.config.model_copy(update={"objective": ObjectiveConfig.model_validate(objective)})
    assert Pipeline(chosen, scored.root).preflight() == []
    assert "preflight: " not in caplog.text
