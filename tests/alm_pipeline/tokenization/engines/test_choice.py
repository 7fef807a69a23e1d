"""Which engine is chosen, and why another one is not."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.engines.choice import EngineChoice, Trial, choose_engine
from alm_pipeline.tokenization.engines.findings import Findings
from alm_pipeline.tokenization.engines.registry import EngineFactory
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view


class FakeEngine:
    """Gives the standard ids, but for texts with a certain word the reverse of them."""

    def __init__(self, name: str, standard: StandardEngine, wrong_on: str | None) -> None:
        self.name, self._standard, self._wrong_on = name, standard, wrong_on

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> list[list[int]]:
        rows = self._standard.encode(texts, special_literals=special_literals)
        pairs = zip(texts, rows, strict=True)
        return [row[::-1] if self._wrong_on and self._wrong_on in text else row for text, row in pairs]


def factory(name: str, wrong_on: str | None = None) -> EngineFactory:
    def make(tokenizer: Tokenizer, view: ByteView, standard: StandardEngine, findings: Findings) -> Engine:
        return FakeEngine(name, standard, wrong_on)

    return make


def failing(error: Exception) -> EngineFactory:
    def fail(*_: object) -> Engine:
        raise error

    return fail


Choose = Callable[..., EngineChoice]
TEXTS = ["0 dogs", "1 fox"]


@pytest.fixture
def choose(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> Choose:
    """Chooses among engines for a dataset of `TEXTS`; calls share their findings."""
    backend = byte_level.backend_tokenizer
    standard, view = StandardEngine(backend), byte_view(backend)

    def agrees(engine: Engine) -> bool:
        return engine.encode(TEXTS, special_literals=False) == standard.encode(TEXTS, special_literals=False)

    def call(engines: dict[str, EngineFactory], agrees: Callable[[Engine], bool] = agrees) -> EngineChoice:
        trial = Trial("tiny-tokens", "shard 3", agrees)
        return choose_engine(backend, view, standard, trial, Findings(tmp_path, {}), engines)

    return call


def test_the_first_engine_that_gives_the_standard_ids_is_chosen(choose: Choose) -> None:
    choice = choose({"first": factory("first"), "second": factory("second")})
    assert (choice.engine.name, choice.refusals) == ("first", {})


def test_without_a_fast_engine_the_standard_one_is_chosen(choose: Choose) -> None:
    choice = choose({})
    assert (choice.engine.name, choice.refusals) == ("tokenizers", {})


@pytest.mark.parametrize(
    ("wrong_on", "reason"), [("\u0e20", "first gives different ids for "), ("0 dogs", "different ids for shard 3")]
)
def test_an_engine_that_differs_is_refused(choose: Choose, wrong_on: str, reason: str) -> None:
    choice = choose({"first": factory("first", wrong_on), "second": factory("second")})
    assert choice.engine.name == "second"
    assert list(choice.refusals) == ["first"]
    assert reason in choice.refusals["first"]


def test_an_engine_that_can_not_read_the_tokenizer_is_refused(choose: Choose) -> None:
    choice = choose({"first": failing(ValueError("can't read the tokenizer"))})
    assert (choice.engine.name, choice.refusals) == ("tokenizers", {"first": "can't read the tokenizer"})


def test_an_engine_that_is_not_installed_is_passed_over_silently(choose: Choose) -> None:
    choice = choose({"first": failing(ImportError("no module")), "second": factory("second")})
    assert (choice.engine.name, choice.refusals) == ("second", {})


def never(engine: Engine) -> bool:
    raise AssertionError("tried again")


def test_what_is_found_in_favor_of_an_engine_is_not_tried_again(choose: Choose) -> None:
    choose({"first": factory("first")})
    # wrong on the adversarial texts, which are not tried again either
    choice = choose({"first": factory("first", "\u0e20")}, never)
    assert (choice.engine.name, choice.refusals) == ("first", {})


def test_an_engine_that_was_refused_is_not_made_again(choose: Choose) -> None:
    refusals = choose({"first": factory("first", "0 dogs")}).refusals
    choice = choose({"first": failing(AssertionError("made again"))}, never)
    assert (choice.engine.name, choice.refusals) == ("tokenizers", refusals)
