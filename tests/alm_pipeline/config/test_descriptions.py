"""Every setting has a description, since the settings reference of the documentation is generated from them."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from alm_pipeline.config import AlmConfig, CorpusConfig, Frozen, Source
from alm_pipeline.recipes.overrides import Overrides
from alm_pipeline.vocabulary.text_forms import NAMED_FORMS


def _models(annotation: Any) -> Iterator[type[Frozen]]:
    """Every configuration model within an annotation, with the models of its fields."""
    if get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType, tuple, dict):
        for argument in get_args(annotation):
            yield from _models(argument)
    elif isinstance(annotation, type) and issubclass(annotation, Frozen):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation)


# `Overrides` is not part of a configuration: it names fields of one
_REACHED: set[type[Frozen]] = {*_models(AlmConfig), Overrides}
MODELS = sorted(_REACHED, key=lambda model: model.__name__)


def test_all_models_are_reached() -> None:
    direct = Frozen.__subclasses__()
    derived = [inner for model in direct for inner in model.__subclasses__()]
    models = {
        model
        for model in (*direct, *derived)
        if model.__module__.startswith(("alm_pipeline.config.", "alm_pipeline.recipes."))
    }
    assert models == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_and_field_has_a_description_in_sentences(model: type[Frozen]) -> None:
    descriptions = {name: field.description or "" for name, field in model.model_fields.items()}
    assert model.__doc__
    assert {name: text for name, text in descriptions.items() if not text.endswith(".")} == {}


SELF_EXPLANATORY = {"kind", "dtype", "save_dtype", "device_map"}


def _choices(annotation: Any) -> Iterator[str]:
    """Every value that a field can be set to by name."""
    for argument in get_args(annotation):
        yield from [argument] if get_origin(annotation) is Literal else _choices(argument)


@pytest.mark.parametrize("model", MODELS)
def test_descriptions_name_every_choice(model: type[Frozen]) -> None:
    fields = {name: field for name, field in model.model_fields.items() if name not in SELF_EXPLANATORY}
    for name, field in fields.items():
        missing = [choice for choice in _choices(field.annotation) if f"`{choice}`" not in (field.description or "")]
        assert missing == [], name


def test_the_description_of_normalize_names_every_form() -> None:
    description = CorpusConfig.model_fields["normalize"].description or ""
    assert [form for form in NAMED_FORMS if f"`{form}`" not in description] == []


def test_the_description_of_source_names_every_kind() -> None:
    description = CorpusConfig.model_fields["source"].description or ""
    kinds = [model.model_fields["kind"].default for model in _models(Source)]
    assert kinds
    assert [kind for kind in kinds if f"`{kind}`" not in description] == []
