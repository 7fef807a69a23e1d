"""A commented configuration is the configuration, and explains every field."""

import re

import pytest
import yaml

from alm_pipeline.config import AlmConfig, Ramp
from alm_pipeline.config.fields.commented import commented_yaml
from alm_pipeline.config.fields.settings import settings_of
from alm_pipeline.recipes.overrides import Overrides, configure, configured_content
from alm_pipeline.recipes.recipes import RECIPES, recipe_content, transfer
from tests.alm_pipeline.recipes.complete import complete_recipes


def shown(config: AlmConfig) -> str:
    return commented_yaml(AlmConfig, config.model_dump(mode="json"), "A heading.")


@pytest.mark.parametrize("name", RECIPES)
def test_it_reads_as_the_configuration(name: str) -> None:
    config = complete_recipes()[name]
    assert AlmConfig.model_validate(yaml.safe_load(shown(config))) == config
    assert yaml.safe_load(commented_yaml(AlmConfig, recipe_content(name), "")) == recipe_content(name)


def test_every_field_of_every_model_is_there_with_its_meaning_and_default() -> None:
    """Also of sections that are not chosen, commented out."""
    text = re.sub(r"(?m)^[ #]+", "", shown(transfer()))
    words = " ".join(text.split())
    for setting in settings_of(AlmConfig):
        assert " ".join((setting.field.description or "").split()) in words, setting.path
        assert re.search(rf"(?m)^{setting.name}:", text), setting.path
    assert "[whole number (≥ 0); default 1000] steps: 48" in words
    assert "[text; required] teacher: demo:" in words


def test_a_list_of_sources_reads_as_the_configuration() -> None:
    """Also where a section has only some of its fields: the others are shown with their defaults."""
    settings = {"corpus.maths.weight": 2, "corpus.maths.deduplicate": {}, "corpus.code.teacher": "other"}
    given = Overrides(corpus=["maths=a.jsonl", "code=b.jsonl"], settings={**settings, "train.lora": {"rank": 3}})
    shown_text = commented_yaml(AlmConfig, configured_content("transfer", given), "A mixture.")
    assert AlmConfig.model_validate(yaml.safe_load(shown_text)) == configure("transfer", given)
    assert "- name: maths" in shown_text
    assert "null" not in re.findall(r"(?m)^  similarity: (.*)$", shown_text)


def test_no_line_is_long() -> None:
    for config in complete_recipes().values():
        lines = [line for line in shown(config).splitlines() if not line.lstrip().startswith(("urls:", "- "))]
        assert max(map(len, lines)) <= 100


def test_values_of_all_kinds_read_as_they_are() -> None:
    config = transfer()
    objective = config.objective.model_copy(update={"terms": {"alm": Ramp(start=0, end=1, steps=3), "sft": 0.5}})
    train = config.train.model_copy(update={"learning_rates": {"*embed*: x": 1e-4}, "freeze": tuple("abc" * 30)})
    corpus = config.corpus.model_copy(update={"text": 'Q: "{question}"\nÄ: {answer}\u202e# \x1b', "name": "2024"})
    config = config.model_copy(update={"objective": objective, "train": train, "corpus": corpus, "teacher": "yes"})
    text = shown(config)
    assert AlmConfig.model_validate(yaml.safe_load(text)) == config
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_section_that_is_commented_out_can_be_taken() -> None:
    """The lines of `lora`, without their signs."""
    text = shown(transfer())
    start = text.index("  # lora:")
    lines = text[start:].split("\n\n")[0].splitlines()
    section = yaml.safe_load("\n".join(line.replace("  # ", "", 1) for line in lines))
    assert section == {"lora": {"rank": 64, "alpha": 64, "dropout": 0.0, "targets": ["*"]}}


def test_secrets_are_not_shown() -> None:
    content = transfer().model_dump(mode="json")
    content["corpus"]["source"]["urls"] = ["https://me:hunter2@host/x.jsonl?sig=hunter2"]
    assert "hunter2" not in commented_yaml(AlmConfig, content, "")
