"""Every engine of the registry gives the standard engine's ids."""

import importlib
import inspect
import pkgutil
import random

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization import engines
from alm_pipeline.tokenization.engines.making import EngineInTheMaking
from alm_pipeline.tokenization.engines.proof import first_difference
from alm_pipeline.tokenization.engines.registry import FAST_ENGINES
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine
from alm_pipeline.vocabulary.byte_view import byte_view

every_engine = pytest.mark.parametrize("name", FAST_ENGINES)


def make(name: str, tokenizer: Tokenizer) -> tuple[Engine, StandardEngine]:
    standard = StandardEngine(tokenizer)
    return FAST_ENGINES[name](tokenizer, byte_view(tokenizer), standard), standard


def parameters(function: object) -> list[tuple[str, object]]:
    return [(parameter.name, parameter.kind) for parameter in inspect.signature(function).parameters.values()]  # type: ignore[arg-type]


def test_every_engine_of_the_folder_is_in_the_registry() -> None:
    names = [f"{engines.__name__}.{module.name}" for module in pkgutil.iter_modules(engines.__path__)]
    classes = [
        value for name in names for value in vars(importlib.import_module(name)).values() if inspect.isclass(value)
    ]
    found = {value for value in classes if value.__module__ in names and hasattr(value, "encode")}
    assert found == {Engine, StandardEngine, EngineInTheMaking, *FAST_ENGINES.values()}


@every_engine
def test_it_satisfies_the_protocol(name: str, byte_level: PreTrainedTokenizerFast) -> None:
    fast, standard = make(name, byte_level.backend_tokenizer)
    assert fast.name == name
    assert parameters(fast.encode) == parameters(standard.encode)


@every_engine
@pytest.mark.parametrize("special_literals", [False, True])
def test_it_gives_the_standard_ids_on_the_adversarial_texts(
    name: str, special_literals: bool, byte_level: PreTrainedTokenizerFast
) -> None:
    fast, standard = make(name, byte_level.backend_tokenizer)
    assert first_difference(fast, standard, special_literals=special_literals) is None


@every_engine
def test_it_returns_the_ids_in_the_order_of_the_texts(name: str, byte_level: PreTrainedTokenizerFast) -> None:
    fast, standard = make(name, byte_level.backend_tokenizer)
    texts = [f"{k} <|im_end|>" if random.Random(k).random() < 0.3 else f"text {k}" for k in range(57)]
    assert fast.encode(texts, special_literals=False).lists() == standard.encode(texts, special_literals=False).lists()
    assert fast.encode([], special_literals=False).lists() == []


@every_engine
def test_a_literal_is_a_special_token_only_if_asked_for(name: str, byte_level: PreTrainedTokenizerFast) -> None:
    end = byte_level.convert_tokens_to_ids("<|im_end|>")
    for engine in make(name, byte_level.backend_tokenizer):
        assert engine.encode(["a<|im_end|>"], special_literals=True).ids[-1] == end
        assert end not in engine.encode(["a<|im_end|>"], special_literals=False).ids
