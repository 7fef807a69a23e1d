"""The proof finds a text on which two engines differ."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.proof import added_token_texts, first_difference, token_texts
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import byte_view
from tests.alm_pipeline.tokenization.engines.wrong_ids import with_rows


def test_a_difference_is_found(byte_level: PreTrainedTokenizerFast) -> None:
    class OffByOne(StandardEngine):
        def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
            rows = super().encode(texts, special_literals=special_literals)
            wrong = [index for index, text in enumerate(texts) if "\u0e20" in text]
            return with_rows(rows, {index: rows.row(index) + 1 for index in wrong})

    backend = byte_level.backend_tokenizer
    text = first_difference(OffByOne(backend), StandardEngine(backend), special_literals=False)
    assert text is not None
    assert "\u0e20" in text
    assert text == next(each for each in ADVERSARIAL_TEXTS if "\u0e20" in each)


def test_the_tokens_own_texts_are_those_of_whole_characters(byte_level: PreTrainedTokenizerFast) -> None:
    view = byte_view(byte_level.backend_tokenizer)
    texts = token_texts(view)
    assert len(set(texts)) == len(texts)
    ordinary = [spelling for id_, spelling in enumerate(view.spelling) if not view.special[id_]]
    assert {spelling.decode() for spelling in ordinary if spelling.isascii()} - {""} <= set(texts)
    assert "<|im_end|>" not in texts
    assert all(text and "\ufffd" not in text for text in texts)


def test_every_added_token_is_in_texts_beside_others_and_words(byte_level: PreTrainedTokenizerFast) -> None:
    view = byte_view(byte_level.backend_tokenizer)
    texts = added_token_texts(view)
    assert texts == added_token_texts(view)
    literals = [view.spelling[id_].decode() for id_ in view.added]
    assert len(literals) > 2
    for literal in literals:
        assert {literal, f"a{literal}b", f" {literal} "} <= set(texts)
        assert any(f"{literal}{other}" in text for other in literals for text in texts)


def test_an_engine_that_differs_beside_an_added_token_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    """Also where its literal is none that all tokenizers are tried on."""
    backend = Tokenizer.from_str(byte_level.backend_tokenizer.to_str())
    backend.add_special_tokens(["<own>"])

    class StripsAround(StandardEngine):
        def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
            stripped = [text.replace(" <own>", "<own>") for text in texts]
            return super().encode(stripped, special_literals=special_literals)

    engine, standard = StripsAround(backend), StandardEngine(backend)
    assert first_difference(engine, standard, special_literals=True) is None
    own = added_token_texts(byte_view(backend))
    assert first_difference(engine, standard, special_literals=True, texts=own) is not None
