"""No number of a configuration is NaN, infinite, a boolean, or beyond 64 bits: every field of every model is tried."""

import json
from collections.abc import Iterator
from importlib import import_module
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from alm_pipeline.config import AlmConfig, Frozen, Ramp, parse_config
from alm_pipeline.ensemble.config import EnsembleConfig, MemberConfig, read_config
from alm_pipeline.recipes.overrides import Overrides, parse_overrides
from alm_pipeline.recipes.recipes import RECIPES, recipe
from storage.errors import UserError
from tests.alm_pipeline.recipes.complete import complete_recipes

pytestmark = pytest.mark.bad_input
for name in ("editing.directions", "hypernetwork", "hypernetwork.networks", "hypernetwork.sampling"):
    import_module(f"alm_pipeline.{name}.settings")  # models of these rooms are among the subclasses


def models(root: type[Frozen] = Frozen) -> Iterator[type[Frozen]]:
    for model in root.__subclasses__():
        yield from (model, *models(model))


def parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from parts(part)


def numeric_fields() -> Iterator[tuple[type[Frozen], str, Any]]:
    """Each field that takes a number, with a function that puts a value where the number stands."""
    for model in models():
        for name, field in model.model_fields.items():
            types = {*parts(field.annotation)}
            if types & {int, float} and not types & {bool, Any}:
                yield model, name, field.annotation


FIELDS = [pytest.param(*field, id=f"{field[0].__name__}.{field[1]}") for field in numeric_fields()]
NOT_NUMBERS = [float("nan"), float("inf"), float("-inf"), "nan", "inf", "1e999", True, False, 10**30, -(10**30)]


def placed(annotation: Any, value: Any) -> Iterator[Any]:
    """The value itself, and within a mapping if the field takes one."""
    inside = [part for part in parts(annotation) if get_origin(part) is dict]
    yield from ({"alm": value} for _ in inside) if inside else (value,)


def errors_of(model: type[Frozen], name: str, value: Any) -> list[str]:
    """The messages about this field."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate({name: value})
    return [error["msg"] for error in caught.value.errors() if error["loc"][:1] == (name,)]


@pytest.mark.parametrize(("model", "name", "annotation"), FIELDS)
def test_what_is_not_a_number_is_refused_by_the_fields_name(model: type[Frozen], name: str, annotation: Any) -> None:
    takes_floats = float in parts(annotation)
    for value in NOT_NUMBERS:
        if takes_floats and isinstance(value, int) and not isinstance(value, bool):
            continue  # a large float
        for content in placed(annotation, value):
            assert errors_of(model, name, content), value


def test_every_model_is_tried() -> None:
    """A model whose base is not `Frozen` would not be."""
    reachable = {part for root in (AlmConfig, EnsembleConfig, Overrides) for part in _reachable(root)}
    assert {model for model in reachable if not issubclass(model, Frozen)} == set()
    assert reachable <= {*models()}
    assert len(FIELDS) > 40


def _reachable(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for part in parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _reachable(part)


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("field", ["train.seed", "corpus.source.seed"])
def test_a_seed_that_no_generator_takes_is_refused(field: str, seed: int) -> None:
    content = recipe("maths").model_dump(mode="json")
    part = content
    *path, last = field.split(".")
    for name in path:
        part = part[name]
    part[last] = seed
    with pytest.raises(UserError, match=r"seed: Input should be (less|greater) than"):
        parse_config(content, "mine.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "train: {learning_rate: .inf}",
        "train: {learning_rate: -.inf}",
        "train: {learning_rate: .nan}",
        "train: {learning_rate: 1e999}",
        "train: {learning_rate: yes}",
        "train: {learning_rates: {'*': .nan}}",
        "objective: {terms: {alm: .inf}}",
        "objective: {terms: {alm: {start: 0, end: .nan, steps: 5}}}",
        "evaluation: {min_improvement: .nan}",
        '{"objective": {"temperature": NaN}}',
        '{"objective": {"gamma": Infinity}}',
        '{"corpus": {"sample": NaN}}',
    ],
)
def test_a_files_numbers_are_refused_by_name(text: str) -> None:
    """As YAML and JSON write them; Python's JSON reads NaN and Infinity, YAML takes them for texts."""
    content = recipe("transfer").model_dump(mode="json")
    for change in (yaml.safe_load(text), *([json.loads(text)] if text.startswith('{"') else [])):
        ((section, values),) = change.items()
        changed = {**content, section: {**content[section], **values}}
        with pytest.raises(
            UserError, match=rf"mine\.yaml: the configuration is wrong:\n  {section}\.{next(iter(values))}"
        ):
            parse_config(changed, "mine.yaml")


@pytest.mark.parametrize("values", [{"learning_rate": float("nan")}, {"gamma": float("inf")}, {"steps": 10**30}])
def test_overrides_are_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"these values are wrong:\n  {next(iter(values))}: Input should be"):
        parse_overrides(values)


@pytest.mark.parametrize("weight", [".nan", ".inf", "-.inf", "1e999", "-1", "yes"])
def test_an_ensembles_weight_is_refused_by_name(weight: str, tmp_path: Any) -> None:
    file = tmp_path / "ensemble.yaml"
    file.write_text(f"members: [{{model: a, weight: {weight}}}, {{model: b}}]")
    with pytest.raises(UserError, match=r"members\.0\.weight: Input should be"):
        read_config(file)


@pytest.mark.parametrize("weights", [(5e-324, 1e10), (1e308, 1.7e308)])
def test_weights_that_vanish_beside_each_other_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="too far apart"):
        EnsembleConfig(members=tuple(MemberConfig(model="a", weight=weight) for weight in weights))


@pytest.mark.parametrize("name", RECIPES)
def test_right_numbers_stay_accepted(name: str) -> None:
    """As numbers, and as texts, because YAML 1.1 reads `1e-4` as a text."""
    config = complete_recipes()[name]
    content = config.model_dump(mode="json")
    assert parse_config(content, "mine.yaml") == config
    content["train"]["learning_rate"] = "1e-4"
    assert parse_config(content, "mine.yaml").train.learning_rate == 1e-4
    assert Ramp.model_validate({"start": 0, "end": 1, "steps": 3}).at(1) == pytest.approx(1 / 3)
    assert TypeAdapter(Annotated[AlmConfig, None]).validate_json(json.dumps(content)).train.learning_rate == 1e-4


OUTSIDE_OF_TENSORS = {
    "CorpusConfig.sample",
    "CorpusConfig.held_out",
    "EvaluationConfig.min_improvement",
    "ObjectiveConfig.gamma",
    "TrainConfig.max_grad_norm",
    "TrainConfig.ema",
    "HypernetTrainConfig.ema",
    "TrainConfig.diverged_at",
    "LoraConfig.dropout",
    "MemberConfig.weight",
    "EditConfig.energy",
    "EditConfig.strength",
    "ServedConfig.timeout",
    "ServedConfig.wait",
    "ServedConfig.tolerance",
    "ServedConfig.start_timeout",
    "DeduplicationConfig.similarity",
    "SourceConfig.sample",
    "SourceConfig.held_out",
    "SourceConfig.weight",
    "RoundsConfig.mix",
    "SamplingConfig.top_p",
}
"""Numbers that are compared or computed with in float64."""

IN_TENSORS = [
    field
    for field in FIELDS
    if float in parts(field.values[2]) and field.id not in OUTSIDE_OF_TENSORS and field.values[0] is not Overrides
]


@pytest.mark.parametrize(("model", "name", "annotation"), IN_TENSORS)
def test_what_float32_lacks_is_refused_where_tensors_are_computed_with_it(
    model: type[Frozen], name: str, annotation: Any
) -> None:
    for value in (1e39, 1e300, 1e-39, 1e-320):
        for content in placed(annotation, value):
            assert any("between 1e-37 and 1e38" in message for message in errors_of(model, name, content))


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_what_float32_holds_is_taken(value: float) -> None:
    train, objective = {"learning_rate": value, "max_grad_norm": 1e300}, {"temperature": value, "terms": {"alm": value}}
    content = recipe("maths").model_dump(mode="json")
    content["train"] |= train
    content["objective"] |= objective
    parse_config(content, "mine.yaml")
