"""What the stored examples show before the teacher scores them, and what stored scores show before a training."""

import json
from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig, FilesSource
from alm_pipeline.config.overrides import Overrides, override
from alm_pipeline.pipeline import Pipeline
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
