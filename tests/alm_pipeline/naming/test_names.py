"""Students and runs are named by what differs between them."""

import inspect
import itertools
from typing import Any

import pytest

from alm_pipeline.config import AlmConfig, parse_config
from alm_pipeline.naming.differences import deciding_settings, differences, labels, texts_apart
from alm_pipeline.naming.names import names_apart, run_name, run_title, student_title
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.recipes.recipes import RECIPES, recipe
from storage.errors import UserError


def recorded(config: AlmConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def changed(base: str = "transfer", **values: Any) -> AlmConfig:
    return override(recipe(base), Overrides(**values))


def test_two_students_are_named_by_their_settings() -> None:
    configs = {"a-0": recorded(changed(gamma=0.2, steps=2000)), "b-1": recorded(changed(gamma=0.5, steps=300))}
    assert names_apart(configs) == {"a-0": "γ=0.2, steps=2000", "b-1": "γ=0.5, steps=300"}


def test_a_run_is_named_by_what_it_changes_in_its_recipe() -> None:
    assert run_name(changed(gamma=0.2, steps=2000)) == "γ=0.2, steps=2000"
    assert run_name(changed(teacher="some/model")) == "transfer"
    assert run_name(changed("bytes", steps=7)) == "steps=7"
    assert run_name(changed(gamma=0.2, name="mine")) == "mine"
    assert run_title(changed(name="mine")).startswith("mine: python-stdlib: ")
    assert student_title(changed(teacher="/x/big-0123456789abcdef/", steps=7)) == (
        "smollm2-135m-instruct from big on python-stdlib: steps=7"
    )


def test_a_chosen_name_is_kept_and_qualified_where_it_is_not_enough() -> None:
    configs = {
        "a-0": recorded(changed(name="mine")),
        "b-1": recorded(changed(gamma=0.2)),
        "c-2": recorded(changed(gamma=0.3)),
    }
    assert names_apart(configs) == {"a-0": "mine", "b-1": "γ=0.2", "c-2": "γ=0.3"}
    configs["d-3"] = recorded(changed(name="mine", temperature=2))
    assert names_apart(configs)["a-0"] == "mine (temperature=5)"
    assert names_apart(configs)["d-3"] == "mine (temperature=2)"


def test_what_no_configuration_records_is_told_apart_by_the_fingerprint() -> None:
    same = recorded(changed(gamma=0.2))
    assert names_apart({"a-0123456789abcdef": same, "a-fedcba9876543210": same}) == {
        "a-0123456789abcdef": "γ=0.2, 01234567",
        "a-fedcba9876543210": "γ=0.2, fedcba98",
    }


def test_the_recipes_are_told_apart_and_shortly() -> None:
    complete = [name for name, make in RECIPES.items() if not inspect.signature(make).parameters]
    names = names_apart({f"{name}-0": recorded(recipe(name)) for name in complete})
    assert len(set(names.values())) == len(complete)
    assert max(map(len, names.values())) < 140
    for one, other in itertools.combinations(complete, 2):
        pair = names_apart({f"{name}-0": recorded(recipe(name)) for name in (one, other)})
        assert len(set(pair.values())) == 2


DECISIVE = {
    "student.initialization": "mean",
    "student.level": 0.5,
    "student.special_tokens": "source",
    "score.dtype": "float32",
    "objective.terms": {"sft": 1.0},
    "train.lora": {},
    "train.learning_rates": {"*x*": 0.5},
    "train.freeze": ["*x*"],
    "train.seed": 3,
    "evaluation.student": "best",
    "corpus.sample": 0.5,
    "corpus.source.exclude": ["x"],
}
UNDECISIVE = {
    "log.run_name": "x",
    "publish.repo": "me/x",
    "train.checkpoint_steps": 3,
    "train.processes": 2,
    "score.batch_tokens": 5,
    "evaluation.steps": 3,
    "name": "other",
}


@pytest.mark.parametrize("field", DECISIVE)
def test_any_setting_that_decides_the_student_names_it(field: str) -> None:
    other = changed(settings={field: DECISIVE[field]})
    (row, _) = differences([recorded(recipe("transfer")), recorded(other)])
    assert [name for name in row if name.startswith(field)], row
    names = names_apart({"a-0": recorded(recipe("transfer")), "b-1": recorded(other)})
    assert len(set(names.values())) == 2
    assert all("=" in name for name in names.values())


@pytest.mark.parametrize("field", UNDECISIVE)
def test_what_decides_nothing_names_nothing(field: str) -> None:
    other = changed(settings={field: UNDECISIVE[field]})
    assert differences([recorded(recipe("transfer")), recorded(other)]) == [{}, {}]


def test_a_name_says_when_there_is_more() -> None:
    values = {"train.seed": 1, "train.ema": 0.5, "train.dtype": "float32", "objective.chunking": "full"}
    values |= {"objective.divergence": "kl"}
    one, other = (recorded(changed(gamma=0.2)), recorded(changed(gamma=0.4, settings={"train.seed": 1})))
    assert names_apart({"a-0": one, "b-1": other}) == {"a-0": "γ=0.2, seed=0", "b-1": "γ=0.4, seed=1"}
    many = recorded(
        changed(
            settings={
                "train.seed": 1,
                "train.ema": 0.5,
                "train.weight_decay": 0.1,
                "train.dtype": "float32",
                "train.schedule": "wsd",
            }
        )
    )
    assert names_apart({"a-0": one, "b-1": many})["b-1"].endswith(", …")


def test_paths_are_short_unless_that_makes_them_equal() -> None:
    assert texts_apart([{"teacher": "/a/one"}, {"teacher": "/b/two"}]) == ["teacher=one", "teacher=two"]
    assert texts_apart([{"teacher": "/a/one"}, {"teacher": "/b/one"}]) == ["teacher=/a/one", "teacher=/b/one"]


def test_labels_are_whole_where_they_are_ambiguous() -> None:
    assert labels(["train.dtype", "score.dtype", "train.steps"]) == ["train.dtype", "score.dtype", "steps"]
    assert labels(["student.model", "evaluation.student"]) == ["student.model", "evaluation.student"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "foreign", [{"objective": 3}, {"of": "another version", "train": {"steps": [1]}}, {"train": None}]
)
def test_a_configuration_of_another_version_names_what_it_has(foreign: dict[str, Any]) -> None:
    names = names_apart({"a-0": recorded(recipe("transfer")), "b-1": foreign, "c-2": {}})
    assert names["c-2"] == "c-2"
    assert len(set(names.values())) == 3
    assert deciding_settings({**foreign, "name": "x"}).get("name") is None


def test_an_older_configuration_is_completed_by_defaults() -> None:
    older = recorded(changed(gamma=0.2))
    del older["train"]["ema"], older["name"], older["evaluation"]
    assert names_apart({"a-0": older, "b-1": recorded(changed(gamma=0.3))}) == {"a-0": "γ=0.2", "b-1": "γ=0.3"}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["", " ", "two\nlines", "\x1b[31m", "x" * 101])
def test_a_name_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="name: "):
        parse_config({**recorded(recipe("transfer")), "name": name}, "mine.yaml")
