"""Single values put into a configuration."""

import pytest

from alm_pipeline.config import AlmConfig, FilesSource
from alm_pipeline.config.overrides import override
from alm_pipeline.config.recipes import transfer
from storage.errors import UserError


def test_nothing_changes_nothing() -> None:
    assert override(transfer()) == transfer()


def test_values_replace_the_recipes() -> None:
    changed = override(
        transfer(), corpus="s3://bucket/my texts/**/*.jsonl", teacher="T", steps=7, gamma=0.0, tokenizer="folder"
    )
    assert changed.corpus.source == FilesSource(urls=("s3://bucket/my texts/**/*.jsonl",))
    assert changed.corpus.name == "my-texts"
    assert changed.corpus.sample == 1.0
    assert changed.teacher == "T"
    assert changed.train.steps == 7
    assert changed.objective.gamma == 0.0
    assert changed.student.tokenizer == "folder"
    assert changed.train.learning_rate == transfer().train.learning_rate


def test_settings_reach_every_field_and_may_be_none() -> None:
    changed = override(transfer(), settings={"student.tokenizer": None, "train.batch_tokens": 64})
    assert changed.student.tokenizer is None
    assert changed.train.batch_tokens == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.stepz": 3}, r"train\.stepz: Extra inputs"),
        ({"nonsense.deep.field": 3}, r"nonsense: Extra inputs"),
        ({"train.steps": -1}, r"train\.steps: .* greater than or equal to 0"),
        ({"corpus.source.kind": "magic"}, r"corpus\.source: .*'magic'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(transfer(), settings=settings)


def test_configurations_are_frozen(config: AlmConfig) -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]
