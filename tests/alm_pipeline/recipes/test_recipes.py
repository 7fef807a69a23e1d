"""Recipes: what they need, what they set beyond what was asked, and what of them applies to a corpus of one's own."""

from pathlib import Path
from typing import Any, get_args

import pytest

from alm_pipeline.config import (
    AlmConfig,
    CorpusConfig,
    FilesSource,
    HubSource,
    TrainConfig,
    TrainedTokenizer,
    parse_config,
)
from alm_pipeline.naming.recipe_choices import recipe_choices
from alm_pipeline.recipes.overrides import Overrides, configure, override
from alm_pipeline.recipes.recipes import RECIPES, Goal, own_run, recipe, required_by, transfer
from storage.errors import UserError
from tests.alm_pipeline.recipes.complete import CORPUS

OWN = {"corpus": "s3://bucket/my texts/**/*.jsonl", "teacher": "TEACHER", "student": "STUDENT"}
WITH_CORPORA = sorted(name for name in RECIPES if "corpus" not in required_by(name))


def test_distill_keeps_both_tokenizers() -> None:
    config = configure("distill", Overrides.model_validate(OWN))
    assert (config.teacher, config.student.model, config.student.tokenizer) == ("TEACHER", "STUDENT", None)
    assert config.corpus == CorpusConfig(name="my-texts", source=FilesSource(urls=(OWN["corpus"],)))
    assert config.train.steps > 1000
    assert recipe("distill", corpus=config.corpus, teacher="TEACHER", student="STUDENT") == config


def test_a_draft_has_its_teachers_tokenizer_whoever_the_teacher_is() -> None:
    config = configure("draft", Overrides.model_validate(OWN))
    assert recipe("draft", corpus=config.corpus, teacher="TEACHER", student="STUDENT") == config
    assert (config.student.model, config.student.tokenizer, config.student.special_tokens) == (
        "STUDENT",
        "TEACHER",
        "target",
    )
    by_setting = Overrides.model_validate({**OWN, "teacher": None, "settings": {"teacher": "OTHER"}})
    assert configure("draft", by_setting).student.tokenizer == "OTHER"
    for given in ({"tokenizer": "third"}, {"settings": {"student.tokenizer": "third"}}):
        assert configure("draft", Overrides.model_validate({**OWN, **given})).student.tokenizer == "third"


@pytest.mark.bad_input
@pytest.mark.parametrize("given", [(), ("corpus",), ("teacher", "student"), ("corpus", "teacher")])
def test_what_distill_lacks_is_asked_for_in_one_sentence(given: tuple[str, ...]) -> None:
    values = {name: OWN[name] for name in given}
    missing = [name for name in OWN if name not in given]
    for attempt in (
        lambda: configure("distill", Overrides.model_validate(values)),
        lambda: recipe("distill", **values),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert [name for name in OWN if f"--{name} " in str(caught.value)] == missing


def test_settings_give_what_a_recipe_needs_as_options_do() -> None:
    settings = {
        "corpus.source": {"kind": "datasets", "name": "allenai/c4", "subset": "en"},
        "teacher": "TEACHER",
        "student.model": "STUDENT",
    }
    config = configure("distill", Overrides(settings=settings))
    assert config.corpus == CorpusConfig(name="c4", source=HubSource(name="allenai/c4", subset="en"))
    by_kind = {"corpus.source.name": "allenai/c4", "corpus.source.subset": "en", "corpus.source.kind": "datasets"}
    settings = {**by_kind, "teacher": "TEACHER", "student.model": "STUDENT"}
    assert configure("distill", Overrides(settings=settings)) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_corpus_of_ones_own_has_the_defaults(name: str) -> None:
    """How a recipe cuts and samples its own texts does not apply."""
    config = configure(name, Overrides.model_validate(OWN))
    assert config.corpus == CorpusConfig(name="my-texts", source=FilesSource(urls=(OWN["corpus"],)))
    sampled = configure(name, Overrides.model_validate({**OWN, "settings": {"corpus.sample": 0.5}}))
    assert sampled.corpus == config.corpus.model_copy(update={"sample": 0.5})


def test_the_corpus_of_a_configuration_keeps_all_but_source_and_name() -> None:
    mine = CorpusConfig(
        name="mine",
        source=HubSource(name="some/where"),
        text="{question} {answer}",
        id="key",
        normalize=(),
        max_bytes=333,
        sample=0.4,
        max_examples=9,
        held_out=0.3,
        shard_bytes=5000,
        tools="functions",
        template_arguments="options",
        marks="learn",
        one_sided="drop",
    )
    unlike_default = {name for name, field in CorpusConfig.model_fields.items() if getattr(mine, name) != field.default}
    assert unlike_default == set(CorpusConfig.model_fields) - {
        *("messages", "layout"),
        *("deduplicate", "decontaminate"),  # which go with no max_examples
    }
    config = transfer().model_copy(update={"corpus": mine})
    changed = override(config, Overrides(corpus="other/texts.jsonl"))
    source = FilesSource(urls=("other/texts.jsonl",))
    assert changed == config.model_copy(update={"corpus": mine.model_copy(update={"name": "texts", "source": source})})


@pytest.mark.bad_input
@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 1), (10, 10), (10, 11), (3, 100)])
def test_a_warmup_that_is_as_long_as_the_training_is_refused_with_the_fix(steps: int, warmup_steps: int) -> None:
    with pytest.raises(
        UserError, match=f"warmup_steps {warmup_steps} would leave none of the {steps} steps.*set train"
    ):
        override(transfer(), Overrides(settings={"train.steps": steps, "train.warmup_steps": warmup_steps}))
    # what a file says stays as it is
    mine = transfer().model_copy(update={"train": TrainConfig(steps=1000, warmup_steps=warmup_steps)})
    with pytest.raises(UserError, match="set train"):
        override(mine, Overrides(steps=steps))


@pytest.mark.parametrize(("steps", "warmup_steps"), [(0, 0), (0, 7), (1, 0), (10, 9)])
def test_shorter_warmups_are_taken(steps: int, warmup_steps: int) -> None:
    settings = {"train.steps": steps, "train.warmup_steps": warmup_steps}
    assert override(transfer(), Overrides(settings=settings)).train.warmup_steps == warmup_steps


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("steps", [0, 1, 3, 20])
def test_a_recipes_warmup_gives_way_to_fewer_steps(name: str, steps: int) -> None:
    whole = configure(name, Overrides.model_validate(OWN)).train
    for overrides in ({"steps": steps}, {"settings": {"train.steps": steps}}):
        values = Overrides.model_validate({**OWN, **overrides})
        config = configure(name, values)
        assert config.train.warmup_steps == whole.warmup_steps * steps // whole.steps
        shown = " ".join(" ".join(recipe_choices(name, config, values)).split())
        expected = f"warmup_steps {config.train.warmup_steps} instead of {whole.warmup_steps}, since the training has"
        assert expected in shown
        assert shown.count("warmup_steps") == 1
    longer = configure(name, Overrides.model_validate({**OWN, "steps": 10 * whole.steps}))
    assert longer.train.warmup_steps == whole.warmup_steps


def test_the_configuration_of_a_finished_run_is_taken_as_it_is() -> None:
    """So that `alm repair` can write what an earlier version has written."""
    content = transfer().model_dump(mode="json")
    content["train"] |= {"steps": 3, "warmup_steps": 5}
    content["corpus"]["text"] = r"{question}\n{answer}"
    stored = parse_config(content, is_stored=True)
    assert (stored.train.warmup_steps, stored.corpus.text) == (5, r"{question}\n{answer}")


@pytest.mark.bad_input
def test_a_warmup_that_was_given_does_not_give_way() -> None:
    with pytest.raises(UserError, match="warmup_steps 5 would leave none"):
        configure("transfer", Overrides(steps=3, settings={"train.warmup_steps": 5}))


def leaves(value: Any, default: Any, path: str) -> dict[str, Any]:
    """The fields of a plain value that differ from a default, by dotted path to the second level."""
    if isinstance(value, dict) and "." not in path and path:
        below = default if isinstance(default, dict) else {}
        return {
            key: item for name in value for key, item in leaves(value[name], below.get(name), f"{path}.{name}").items()
        }
    return {} if value == default else {path: value}


@pytest.mark.parametrize("name", RECIPES)
def test_everything_that_a_recipe_sets_is_listed(name: str) -> None:
    """Each field that differs from a configuration with nothing but what is required, and that nobody gave."""
    values = Overrides.model_validate(OWN if required_by(name) else {})
    config = configure(name, values)
    required = {"corpus": {"name": "x", "source": {"kind": "files", "urls": ["x"]}}, "teacher": "x"}
    plain = parse_config({**required, "student": {"model": "x"}}).model_dump(mode="json")
    found = {
        path: value
        for section, content in config.model_dump(mode="json").items()
        for path, value in leaves(content, plain[section], section).items()
    }
    shown = " ".join(" ".join(recipe_choices(name, config, values)).split())
    given = {"corpus.name", "corpus.source", "teacher", "student.model"} if required_by(name) else set()
    assert {path for path in found if path not in given} == {
        path for path in found if path.split(".")[-1] in shown.replace(",", " ").replace(":", " ").split()
    } - given
    assert f"the recipe {name} also sets" in shown


def test_what_was_given_is_not_listed() -> None:
    values = Overrides(
        corpus="texts.jsonl", teacher="TEACHER", steps=60, tokenizer="bytes", settings={"train.dtype": "float32"}
    )
    lines = recipe_choices("transfer", configure("transfer", values), values)
    assert lines == [
        "the recipe transfer also sets (--set FIELD=VALUE changes it):",
        "  student: model demo:smollm2-135m-instruct",
        "  objective: terms {alm: 1.0, sft: 1.0}, balance temperature, temperature 5.0",
        "  train: batch_tokens 1024, row_tokens 512, learning_rate 0.0002, warmup_steps\n    5, checkpoint_steps 12",
    ]


def test_a_new_tokenizer_is_said() -> None:
    """On models of one's own it would be a surprise."""
    values = Overrides.model_validate(OWN)
    shown = " ".join(" ".join(recipe_choices("transfer", configure("transfer", values), values)).split())
    assert "student: tokenizer {vocab_size: 16384, train_bytes: 16777216}: a byte-level BPE tokenizer trained" in shown


@pytest.mark.parametrize("goal", get_args(Goal))
@pytest.mark.parametrize("tokenizer", [None, "OTHER"])
def test_runs_of_ones_own_are_complete(goal: Goal, tokenizer: str | None, tmp_path: Path) -> None:
    config = own_run(goal, CORPUS, "TEACHER", "STUDENT", tokenizer)
    assert parse_config(config.model_dump(mode="json")) == config
    expected = {"distill": None, "tokenizer": tokenizer or TrainedTokenizer(), "bytes": "bytes"}
    assert config.student.tokenizer == expected[goal]
    assert config.train.row_tokens > (config.corpus.max_bytes or 2048) or goal != "bytes"
    assert isinstance(config, AlmConfig)
