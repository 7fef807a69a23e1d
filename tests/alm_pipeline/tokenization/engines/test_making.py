"""The standard engine encodes until a proven engine is made, and where it can't be."""

import logging
from threading import Event

import pytest
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.making import EngineInTheMaking
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine

TEXTS = ["the quick fox", "", "<|im_end|>"]


class Reversed(StandardEngine):
    """An engine whose ids differ from the standard ones."""

    def encode(self, texts: object, *, special_literals: bool) -> FlatIds:
        flat = super().encode(texts, special_literals=special_literals)  # type: ignore[arg-type]
        return FlatIds(flat.ids[::-1], flat.offsets)


def test_the_standard_engine_encodes_until_the_other_one_is_made(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    standard, may_go_on = StandardEngine(byte_level.backend_tokenizer), Event()
    other = Reversed(byte_level.backend_tokenizer)

    def make() -> Engine:
        assert may_go_on.wait(60)
        return other

    engine = EngineInTheMaking("other", make, standard)
    engine.making.start()
    expected = standard.encode(TEXTS, special_literals=True)
    assert engine.encode(TEXTS, special_literals=True).lists() == expected.lists()
    may_go_on.set()
    engine.making.join()
    assert engine.encode(TEXTS, special_literals=True).lists() == other.encode(TEXTS, special_literals=True).lists()


@pytest.mark.bad_input
def test_an_engine_that_cant_be_made_any_more_costs_speed_alone(
    byte_level: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> Engine:
        raise ValueError("too little memory")

    standard = StandardEngine(byte_level.backend_tokenizer)
    engine = EngineInTheMaking("other", make, standard)
    with caplog.at_level(logging.WARNING):
        engine.making.start()
        engine.making.join()
    expected = standard.encode(TEXTS, special_literals=True).lists()
    assert engine.encode(TEXTS, special_literals=True).lists() == expected
    (record,) = caplog.records
    assert "can't be used now (too little memory): tokenizers encodes" in record.getMessage()
