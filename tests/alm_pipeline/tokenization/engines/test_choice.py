"""Which engine is chosen, and why another one is not."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.engines import choice as engines_choice
from alm_pipeline.tokenization.engines.choice import EngineChoice, Trial, choose_engine, is_proven, is_refuted, refute
from alm_pipeline.tokenization.engines.findings import Findings
from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.making import EngineInTheMaking
from alm_pipeline.tokenization.engines.proof import DifferentIds, difference
from alm_pipeline.tokenization.engines.registry import EngineFactory
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view
from tests.alm_pipeline.tokenization.engines.wrong_ids import with_rows

REMEMBERED: dict[tuple[bool, tuple[str, ...]], FlatIds] = {}


class Remembering(StandardEngine):
    """Encodes the adversarial texts once for all tests."""

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
        key = special_literals, tuple(texts)
        if key not in REMEMBERED:
            REMEMBERED[key] = super().encode(texts, special_literals=special_literals)
        return REMEMBERED[key]


class FakeEngine:
    """Gives the standard ids, but for texts with a certain word the reverse of them."""

    def __init__(self, name: str, standard: StandardEngine, wrong_on: str | None, delay: float) -> None:
        self.name, self._standard, self._wrong_on, self._delay = name, standard, wrong_on, delay

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
        time.sleep(self._delay if len(texts) == len(TEXTS) else 0)
        flat = self._standard.encode(texts, special_literals=special_literals)
        wrong = [index for index, text in enumerate(texts) if self._wrong_on and self._wrong_on in text]
        return with_rows(flat, {index: flat.row(index)[::-1] for index in wrong})


def factory(name: str, wrong_on: str | None = None, delay: float = 0) -> EngineFactory:
    """`delay` are seconds per call."""

    def make(tokenizer: Tokenizer, view: ByteView, standard: StandardEngine) -> Engine:
        return FakeEngine(name, Remembering(tokenizer), wrong_on, delay)

    return make


def failing(error: Exception) -> EngineFactory:
    def fail(*_: object) -> Engine:
        raise error

    return fail


Choose = Callable[..., EngineChoice]
TEXTS = ["0 dogs", "1 fox"]
SLOW, FAST = 0.04, 0.01
"""seconds that engines are made to take, which no busy machine turns around"""


@pytest.fixture
def choose(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> Choose:
    """Chooses among engines for a dataset of `TEXTS`; calls share their findings. The standard engine is slow."""
    backend = byte_level.backend_tokenizer
    standard, view = StandardEngine(backend), byte_view(backend)

    class Slow(Remembering):
        def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
            time.sleep(2 * SLOW if len(texts) == len(TEXTS) else 0)
            return super().encode(texts, special_literals=special_literals)

    def agrees(engine: Engine) -> bool:
        rows = (each.encode(TEXTS, special_literals=False) for each in (engine, standard))
        return next(rows).first_difference(next(rows)) is None

    def call(
        engines: dict[str, EngineFactory], agrees: Callable[[Engine], bool] = agrees, dataset: str = "tiny-tokens"
    ) -> EngineChoice:
        trial = Trial("tiny", dataset, "shard 3", agrees, lambda: TEXTS)
        return choose_engine(backend, view, Slow(backend), trial, Findings(tmp_path, {}), engines)

    return call


def test_the_fastest_engine_that_gives_the_standard_ids_is_chosen(choose: Choose) -> None:
    choice = choose({"slow": factory("slow", delay=SLOW), "fast": factory("fast", delay=FAST)})
    assert choice.engine.name == "fast"
    assert choice.speed > 2
    assert not choice.differs
    (reason,) = choice.refusals.values()
    assert list(choice.refusals) == ["slow"]
    assert "times as fast as tokenizers" in reason
    assert str(choice).startswith("encoded with fast, which is ")
    assert str(choice).endswith(f"; not with slow: {reason}")


def test_an_engine_that_is_slower_than_the_standard_one_is_not_chosen(choose: Choose) -> None:
    choice = choose({"slow": factory("slow", delay=4 * SLOW)})
    assert (choice.engine.name, choice.speed) == ("tokenizers", 1)
    assert list(choice.refusals) == ["slow"]
    assert str(choice).startswith("encoded with tokenizers; not with slow: 0.")


def test_without_a_fast_engine_the_standard_one_is_chosen(choose: Choose) -> None:
    choice = choose({})
    assert (choice.engine.name, choice.refusals, str(choice)) == ("tokenizers", {}, "encoded with tokenizers")


@pytest.mark.parametrize(
    ("wrong_on", "reason"),
    [
        ("\u0e20", "first gives different ids for "),
        ("qu", "first gives different ids for "),
        ("\u6771<|endoftext|>", "first gives different ids for "),
        ("0 dogs", "different ids for shard 3"),
    ],
)
def test_an_engine_that_differs_is_refused(choose: Choose, wrong_on: str, reason: str) -> None:
    choice = choose({"first": factory("first", wrong_on), "second": factory("second", delay=FAST)})
    assert choice.engine.name == "second"
    assert choice.differs
    assert list(choice.refusals) == ["first"]
    assert reason in choice.refusals["first"]


def test_a_difference_that_the_trial_names_is_the_reason(choose: Choose) -> None:
    def differs(engine: Engine) -> bool:
        raise DifferentIds(difference(engine, "a text"))

    assert choose({"first": factory("first")}, differs).refusals == {"first": "first gives different ids for 'a text'"}


def test_an_engine_that_can_not_read_the_tokenizer_is_refused(choose: Choose) -> None:
    choice = choose({"first": failing(ValueError("can't read the tokenizer"))})
    assert (choice.engine.name, choice.refusals) == ("tokenizers", {"first": "can't read the tokenizer"})
    assert not choice.differs


def test_an_engine_that_is_not_installed_is_passed_over_silently(choose: Choose) -> None:
    choice = choose({"first": failing(ImportError("no module")), "second": factory("second")})
    assert (choice.engine.name, choice.refusals) == ("second", {})


def never(engine: Engine) -> bool:
    raise AssertionError("tried again")


def test_what_is_found_in_favor_of_an_engine_is_not_tried_again(choose: Choose) -> None:
    speed = choose({"first": factory("first")}).speed
    # wrong on the adversarial texts, which are not tried again either
    choice = choose({"first": factory("first", "\u0e20")}, never)
    assert (choice.engine.name, choice.speed, choice.refusals) == ("first", speed, {})


def test_a_proven_engine_of_a_large_vocabulary_is_made_in_a_thread(
    choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_choice, "_TOKENS_WORTH_A_THREAD", 1)
    first = choose({"first": factory("first")})
    assert not isinstance(first.engine, EngineInTheMaking), "it was needed for the trial"
    choice = choose({"first": factory("first")}, never)
    assert isinstance(choice.engine, EngineInTheMaking)
    assert (choice.engine.name, choice.speed) == ("first", first.speed)
    choice.engine.making.join()
    assert choice.engine.encode(TEXTS, special_literals=False).lists()


def test_another_dataset_of_the_tokenizer_is_tried_on_its_own_texts_alone(choose: Choose) -> None:
    choose({"first": factory("first")})
    choice = choose({"first": factory("first", "\u0e20")}, dataset="another")
    assert choice.engine.name == "first"
    assert choose({"first": factory("first", "0 dogs")}, dataset="third").differs


def test_an_engine_that_was_refused_is_not_made_again(choose: Choose) -> None:
    refusals = choose({"first": factory("first", "0 dogs")}).refusals
    choice = choose({"first": failing(AssertionError("made again"))}, never)
    assert (choice.engine.name, choice.refusals, choice.differs) == ("tokenizers", refusals, True)


def test_a_refuted_engine_is_not_chosen_for_any_dataset_of_the_tokenizer(choose: Choose, tmp_path: Path) -> None:
    engine, findings = choose({"first": factory("first")}).engine, Findings(tmp_path, {})
    assert not is_refuted(engine, "tiny", findings)
    assert is_proven("first", "tiny", findings)
    assert not is_proven("first", "other", findings)
    assert not is_proven("second", "tiny", findings)
    refute(engine, "tiny", "tiny-tokens", "it lied", findings)
    assert is_refuted(engine, "tiny", findings)
    assert not is_proven("first", "tiny", findings)
    assert not is_refuted(engine, "other", findings)
    for dataset in ("tiny-tokens", "another"):
        choice = choose({"first": failing(AssertionError("made again"))}, never, dataset)
        assert (choice.engine.name, choice.refusals) == ("tokenizers", {"first": "it lied"})
