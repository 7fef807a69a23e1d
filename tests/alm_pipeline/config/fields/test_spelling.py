"""Misspelt settings, values and names are answered with the nearest ones: every field at every depth is tried."""

import copy
import os
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from alm_pipeline.comparison.corpora import texts_at
from alm_pipeline.config import AlmConfig, Chunking, Method, RoundsConfig, Term, parse_config
from alm_pipeline.config.fields.settings import Setting, annotation_at, settings_of
from alm_pipeline.config.fields.spelling import nearest, unknown_setting
from alm_pipeline.config.fields.synonyms import SYNONYMS
from alm_pipeline.config.fields.values import choices
from alm_pipeline.ensemble.config import EnsembleConfig
from alm_pipeline.models.files import model_folder
from alm_pipeline.recipes.overrides import Overrides, override, parse_overrides
from alm_pipeline.recipes.recipes import RECIPES, maths, recipe, transfer
from alm_pipeline.vocabulary.text_forms import NAMED_FORMS, form_named
from storage.errors import UserError

pytestmark = pytest.mark.bad_input

SETTINGS = settings_of(AlmConfig)


def misspelt(name: str) -> Iterator[str]:
    """The name without one of its letters, and with two of them exchanged; a few of these, or all with ALM_SOAK."""
    for at in range(len(name)) if "ALM_SOAK" in os.environ else {len(name) // 2, len(name) - 1}:
        if len(name) > 2:
            yield name[:at] + name[at + 1 :]
        if at and name[at - 1] != name[at]:
            yield name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]


def wrong_paths(setting: Setting) -> Iterator[list[str]]:
    """Where people look for a setting: with a wrong letter, in a misspelt section, without its section, in another."""
    *parents, name = setting.path.split(".")
    paths = [[*parents, wrong] for wrong in misspelt(name)]
    paths += [[wrong, *parents[1:], name] for wrong in misspelt(parents[0])] if len(parents) == 1 else []
    paths += [[*place, name] for place in ([], ["train"], ["objective"], ["corpus", "source"], ["student"])]
    yield from (path for path in paths if not annotation_at(AlmConfig, path))


def as_answered(setting: Setting) -> str:
    return f"{setting.path} ({setting.meaning})"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.path)
def test_a_misspelt_or_misplaced_setting_is_answered_with_the_right_one(setting: Setting) -> None:
    paths = list(wrong_paths(setting))
    assert len(paths) > 2
    for path in paths:
        message = unknown_setting(AlmConfig, path)
        assert message.startswith(f"{'.'.join(path)}: no such setting; did you mean")
        assert as_answered(setting) in message or is_same_path(setting, message)


def is_same_path(setting: Setting, message: str) -> bool:
    """Of the fields of several kinds of sources that have one name, the first is described.

    The objective of rounds has the fields of the run's own, which is likelier to be meant.
    """
    own = setting.path.removeprefix("rounds.")
    return (setting.name == "kind" and f"{setting.path} (" in message) or (
        own.startswith("objective.") and f"{own} (" in message
    )


def section_of(content: dict[str, Any], path: list[str]) -> dict[str, Any]:
    for part in path:
        content = content[int(part)] if isinstance(content, list) else content[part]
    return content


FULL = {
    **transfer().model_dump(mode="json"),
    "publish": {"repo": "a/b"},
    "objective": {"terms": {"alm": {"start": 0, "end": 1, "steps": 3}}},
}
FILTERS = {
    "deduplicate": {"exact": True, "near": True, "similarity": 0.8, "words": 5, "across": True},
    "decontaminate": {"questions": ["x"], "text": "x", "words": 13},
}
FULL["corpus"] = {**FULL["corpus"], **FILTERS}
FULL["rounds"] = {**RoundsConfig().model_dump(mode="json"), "objective": FULL["objective"]}
FULL["train"] = {**FULL["train"], "lora": {"rank": 3}}
TEMPLATE = {"template": "chatml", "arguments": {}}
FULL |= {"teacher_template": TEMPLATE, "student": {**FULL["student"], "template": TEMPLATE}}
SOURCES = {
    "files": {"kind": "files", "urls": ["x"], "exclude": [], "format": "auto"},
    "datasets": {"kind": "datasets", "name": "x", "subset": "x", "split": "x", "revision": "x", "streaming": True},
    "reasoning_gym": {"kind": "reasoning_gym", "task": "x", "size": 1, "seed": 1},
    "written": {"kind": "written", "examples": "x"},
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting.path} {setting.kind or ''}")
def test_a_misspelt_field_of_a_file_is_answered_with_the_right_one(setting: Setting) -> None:
    """The field keeps its value under the wrong name; what is missing now is not reported as well."""
    content = copy.deepcopy(FULL)
    if setting.kind:
        content["corpus"]["source"] = dict(SOURCES[setting.kind])
    *parents, name = setting.path.replace("KEY", "alm").replace("[]", ".0").split(".")
    if setting.path.startswith("corpus[]"):
        content["corpus"] = [{**content["corpus"], "weight": 2.0, "teacher_template": dict(TEMPLATE)}]
    section = section_of(content, parents)
    wrong = next(wrong for wrong in misspelt(name) if wrong not in section)
    section[wrong] = section.pop(name, None)
    with pytest.raises(UserError) as caught:
        parse_config(content, "mine.yaml")
    assert f"did you mean {'.'.join([*parents, name])} ({setting.meaning})" in str(caught.value) or (
        f"or {'.'.join([*parents, name])} ({setting.meaning})" in str(caught.value)
    )
    assert "is missing" not in str(caught.value)
    assert "Input should be" not in str(caught.value)


@pytest.mark.parametrize("setting", SETTINGS[::5], ids=lambda setting: setting.path)
def test_a_misspelt_setting_of_an_override_is_answered_with_the_right_one(setting: Setting) -> None:
    for path in wrong_paths(setting):
        with pytest.raises(UserError, match="no such setting; did you mean") as caught:
            override(maths(), Overrides(settings={".".join(path): 1}))
        assert setting.path.removeprefix("rounds.") in str(caught.value)


@pytest.mark.parametrize(("name", "paths"), SYNONYMS.items())
def test_names_of_other_trainers_are_answered_with_the_settings_that_do_it(name: str, paths: tuple[str, ...]) -> None:
    assert all(annotation_at(AlmConfig, path.split(".")) for path in paths)
    assert not annotation_at(AlmConfig, [name])
    for place in ([], ["train"]):
        if not annotation_at(AlmConfig, [*place, name]):
            message = unknown_setting(AlmConfig, [*place, name])
            assert all(f"{path} (" in message for path in paths), message


def test_a_field_of_another_kind_names_the_kind() -> None:
    with pytest.raises(UserError, match=r"corpus\.source\.size: only with corpus\.source\.kind reasoning_gym"):
        override(transfer(), Overrides(settings={"corpus.source.size": 5}))


def test_a_whole_section_is_answered_with_the_section() -> None:
    content = transfer().model_dump(mode="json")
    content["corups"] = content.pop("corpus")
    with pytest.raises(UserError) as caught:
        parse_config(content, "mine.yaml")
    assert str(caught.value).splitlines()[1:] == [
        "  corups: no such setting; did you mean corpus (The texts, and how they are cut into examples)?"
    ]


_OTHERS = ("objective.terms", "rounds.objective.terms", "corpus.source")
NAMED = [setting for setting in SETTINGS if len(choices(setting.field.annotation)) > 1 and setting.path not in _OTHERS]


@pytest.mark.parametrize("setting", NAMED, ids=lambda setting: f"{setting.path} {setting.kind or ''}")
def test_a_misspelt_name_is_answered_with_the_nearest(setting: Setting) -> None:
    for name in choices(setting.field.annotation):
        for wrong in misspelt(name):
            if wrong in choices(setting.field.annotation):
                continue
            settings = {setting.path: [wrong] if setting.name == "report_to" else wrong}
            with pytest.raises(UserError, match=f"'{wrong}' is not one of .*did you mean .*{name}"):
                override(transfer(), Overrides(settings=settings))


@pytest.mark.parametrize("kind", SOURCES)
def test_a_misspelt_kind_of_source_is_answered_with_the_nearest(kind: str) -> None:
    for wrong in misspelt(kind):
        with pytest.raises(UserError, match=rf"corpus\.source\.kind: '{wrong}' is not one of .*did you mean {kind}\?"):
            override(transfer(), Overrides(settings={"corpus.source.kind": wrong}))


@pytest.mark.parametrize("term", get_args(Term))
def test_a_misspelt_loss_term_is_answered_with_the_nearest(term: str) -> None:
    for wrong in misspelt(term):
        with pytest.raises(UserError, match=rf"objective\.terms: '{wrong}' is not one of alm, .*did you mean .*{term}"):
            override(transfer(), Overrides(settings={"objective.terms": {wrong: 1}}))


@pytest.mark.parametrize("name", RECIPES)
def test_a_misspelt_recipe_is_answered_with_the_nearest(name: str) -> None:
    for wrong in misspelt(name):
        with pytest.raises(UserError, match=f"{wrong}: not a recipe.*did you mean {name} "):
            recipe(wrong)


def test_a_misspelt_override_is_answered_with_the_nearest() -> None:
    for name, field in Overrides.model_fields.items():
        for wrong in misspelt(name):
            with pytest.raises(UserError) as caught:
                parse_overrides({wrong: "x"})
            assert (
                f"{wrong}: no such setting; did you mean {name} ({(field.description or '').split('. ')[0][:20]}"
                in str(caught.value)
            )


def test_a_misspelt_field_of_an_ensemble_is_answered_with_the_right_one() -> None:
    for setting in settings_of(EnsembleConfig):
        path = setting.path.replace("[]", ".0").split(".")
        for wrong in misspelt(path[-1]):
            assert setting.meaning in unknown_setting(EnsembleConfig, [*path[:-1], wrong])


@pytest.mark.parametrize(
    ("name", "meant"),
    [("demo:smollm", "demo:smollm2-135m-instruct"), ("gemma-3-270m", "demo:gemma-3-270m"), ("byts", "bytes")],
)
def test_a_misspelt_model_or_tokenizer_is_answered_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {meant}"):
        model_folder(name)


@pytest.mark.parametrize("form", NAMED_FORMS)
def test_a_misspelt_form_of_texts_is_answered_with_the_nearest(form: str) -> None:
    for wrong in set(misspelt(form)) - set(NAMED_FORMS):
        with pytest.raises(UserError, match=f"'{wrong}' is not a form.*did you mean .*{form}"):
            form_named(wrong)


def test_a_wrong_template_of_a_comparison_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match=r"text: the template has a backslash"):
        texts_at("texts.jsonl", r"{question}\n{answer}", 3)


def test_nothing_is_proposed_for_what_is_near_to_nothing() -> None:
    assert "did you mean" not in unknown_setting(AlmConfig, ["qqqqqqqq"])
    assert nearest("qqqqqqqq", [*get_args(Chunking), *get_args(Method)]) == []
