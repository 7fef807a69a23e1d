"""Single values put into a configuration."""

from typing import Any

import pytest

from alm_pipeline.config import AlmConfig, FilesSource, TemplateConfig, parse_config
from alm_pipeline.recipes.overrides import FIELDS, Overrides, configure, override
from alm_pipeline.recipes.recipes import transfer
from storage.errors import UserError


def test_no_overrides_change_nothing() -> None:
    assert override(transfer(), Overrides()) == transfer()


def test_values_replace_the_recipes() -> None:
    chosen = Overrides(
        corpus="s3://bucket/my texts/**/*.jsonl", teacher="T", steps=7, gamma=0.0, tokenizer="folder", student="S"
    )
    changed = override(transfer(), chosen)
    assert changed.corpus.source == FilesSource(urls=("s3://bucket/my texts/**/*.jsonl",))
    assert changed.corpus.name == "my-texts"
    assert changed.teacher == "T"
    assert changed.train.steps == 7
    assert changed.objective.gamma == 0.0
    assert changed.student.model == "S"
    assert changed.student.tokenizer == "folder"
    assert changed.train.learning_rate == transfer().train.learning_rate


def test_every_override_names_a_field_of_the_configuration() -> None:
    assert list(Overrides.model_fields) == [*FIELDS, "settings"]
    for name, field in FIELDS.items():
        value = AlmConfig.model_validate(transfer())
        for part in field.split("."):
            assert part in type(value).model_fields, name
            value = getattr(value, part)


def test_every_override_has_a_description() -> None:
    assert all(field.description for field in Overrides.model_fields.values())


def test_a_misspelt_override_is_refused() -> None:
    with pytest.raises(ValueError, match="stepz"):
        Overrides.model_validate({"stepz": 3})


def test_settings_reach_every_field_and_can_set_none() -> None:
    changed = override(transfer(), Overrides(settings={"student.tokenizer": None, "train.batch_tokens": 64}))
    assert changed.student.tokenizer is None
    assert changed.train.batch_tokens == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.stepz": 3}, r"train\.stepz: no such setting; did you mean train\.steps \(The number of optimizer"),
        ({"nonsense.deep.field": 3}, r"nonsense\.deep\.field: no such setting; `alm show` prints all"),
        ({"train.steps": -1}, r"train\.steps: .* greater than or equal to 0"),
        ({"corpus.source.kind": "magic"}, r"corpus\.source\.kind: 'magic' is not one of files, datasets"),
        *[({name: 1}, f"'{name}' is not the dotted name") for name in ("", ".", "train.", ".train", "a..b")],
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(transfer(), Overrides(settings=settings))


def test_configurations_are_frozen(config: AlmConfig) -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]


def test_a_template_by_name_is_a_section_when_arguments_are_set(config: AlmConfig) -> None:
    """In whichever order they come."""
    settings = {"student.template": "chatml", "student.template.arguments.enable_thinking": False}
    arguments = {"enable_thinking": False}
    for given in (settings, dict(reversed(settings.items()))):
        changed = override(config, Overrides(settings=given))
        assert changed.student.template == TemplateConfig(template="chatml", arguments=arguments)
    alone = {"teacher_template.arguments.enable_thinking": False}
    assert override(config, Overrides(settings=alone)).teacher_template == TemplateConfig(arguments=arguments)


def listed() -> AlmConfig:
    content = transfer().model_dump(mode="json")
    sources = [{**content["corpus"], "name": name, "sample": sample} for name, sample in (("maths", 1), ("c4.en", 0.5))]
    return parse_config({**content, "corpus": sources})


@pytest.mark.parametrize("place", ["maths", "0"])
def test_a_source_is_named_or_numbered(place: str) -> None:
    changed = override(
        listed(), Overrides(settings={f"corpus.{place}.weight": 3, f"corpus.{place}.source.exclude": []})
    )
    assert [source.weight for source in changed.sources] == [3, 1]
    assert changed.sources[1] == listed().sources[1]


def test_a_sources_name_may_have_periods() -> None:
    changed = override(listed(), Overrides(settings={"corpus.c4.en.teacher": "other"}))
    assert [source.teacher for source in changed.sources] == [None, "other"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"corpus.sample": 0.5}, r"corpus is a list of the sources maths, c4\.en: write corpus\.NAME\.FIELD, as in "),
        ({"corpus.prose.weight": 1}, r"corpus\.prose\.weight: corpus is a list of the sources maths"),
        ({"corpus.2.weight": 1}, r"corpus\.2\.weight: corpus is a list"),
        ({"corpus.maths.wieght": 1}, r"corpus\.maths\.wieght: no such setting"),
    ],
)
def test_what_is_no_setting_of_a_source_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        override(listed(), Overrides(settings=settings))


def test_several_urls_are_a_mixture() -> None:
    given = ["maths=s3://bucket/maths/*.jsonl", "https://host/code.parquet"]
    changed = configure("transfer", Overrides(corpus=given, settings={"corpus.maths.weight": 2}))
    assert [(source.name, source.weight, source.source.urls) for source in changed.sources] == [
        ("maths", 2, ("s3://bucket/maths/*.jsonl",)),
        ("code", 1, ("https://host/code.parquet",)),
    ]
    assert configure("transfer", Overrides(corpus=["a.jsonl"])) == configure("transfer", Overrides(corpus="a.jsonl"))


def test_urls_replace_the_sources_of_their_names() -> None:
    changed = override(listed(), Overrides(corpus=["c4.en=other.jsonl"]))
    assert changed.sources[0] == listed().sources[0]
    assert changed.sources[1].source.urls == ("other.jsonl",)
    with pytest.raises(UserError, match=r"other\.jsonl: the file has the sources maths, c4\.en: write NAME=URL"):
        override(listed(), Overrides(corpus="other.jsonl"))


def test_two_urls_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two sources are called 'texts': name each, as NAME=URL"):
        configure("transfer", Overrides(corpus=["a/texts.jsonl", "b/texts.jsonl"]))
