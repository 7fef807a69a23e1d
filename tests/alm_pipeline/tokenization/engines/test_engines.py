"""The fast engine gives the standard one's ids, or is not used."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.tokenization.engines.kitoken import KitokenEngine
from alm_pipeline.tokenization.engines.proof import first_difference
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import byte_view

FAMILIES = ["byte_level", "sentencepiece"]


def engines(tokenizer: PreTrainedTokenizerFast) -> tuple[KitokenEngine, StandardEngine]:
    backend = tokenizer.backend_tokenizer
    standard = StandardEngine(backend)
    return KitokenEngine(backend, byte_view(backend), standard), standard


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("special_literals", [False, True])
def test_same_ids_on_the_adversarial_texts(family: str, special_literals: bool, request: pytest.FixtureRequest) -> None:
    fast, standard = engines(request.getfixturevalue(family))
    assert first_difference(fast, standard, special_literals=special_literals) is None


def test_order_is_kept_where_some_texts_are_left_to_the_standard_engine(byte_level: PreTrainedTokenizerFast) -> None:
    fast, standard = engines(byte_level)
    texts = [f"{k} <|im_end|>" if random.Random(k).random() < 0.3 else f"text {k}" for k in range(57)]
    assert fast.encode(texts, special_literals=False) == standard.encode(texts, special_literals=False)
    assert fast.encode([], special_literals=False) == []


def test_literals_are_special_where_that_is_asked_for(byte_level: PreTrainedTokenizerFast) -> None:
    end = byte_level.convert_tokens_to_ids("<|im_end|>")
    for engine in engines(byte_level):
        assert engine.encode(["a<|im_end|>"], special_literals=True)[0][-1] == end
        assert end not in engine.encode(["a<|im_end|>"], special_literals=False)[0]


def test_a_difference_is_found(byte_level: PreTrainedTokenizerFast) -> None:
    class OffByOne(StandardEngine):
        def encode(self, texts: list[str], *, special_literals: bool) -> list[list[int]]:  # type: ignore[override]
            rows = super().encode(texts, special_literals=special_literals)
            return [
                [*row[:-1], row[-1] + 1] if "\u0e20" in text else row for text, row in zip(texts, rows, strict=True)
            ]

    backend = byte_level.backend_tokenizer
    found = first_difference(OffByOne(backend), StandardEngine(backend), special_literals=False)
    assert found is not None
    assert "\u0e20" in found
    assert found == next(text for text in ADVERSARIAL_TEXTS if "\u0e20" in text)


def test_a_tokenizer_that_kitoken_does_not_read(
    monkeypatch: pytest.MonkeyPatch, byte_level: PreTrainedTokenizerFast
) -> None:
    import kitoken

    class Unreadable:
        @staticmethod
        def from_tokenizers(data: bytes) -> None:
            raise BaseException("panicked")

    monkeypatch.setattr(kitoken, "Kitoken", Unreadable)
    with pytest.raises(ValueError, match="can't read the tokenizer: panicked"):
        engines(byte_level)


def test_stretches_are_encoded_as_inside_a_text(sentencepiece: PreTrainedTokenizerFast) -> None:
    standard = StandardEngine(sentencepiece.backend_tokenizer)
    bos = sentencepiece.convert_tokens_to_ids("<bos>")
    whole = standard.encode(["The fox<bos>  jumps<bos>"], special_literals=True)[0]
    first, second, last = standard.encode_stretches(["The fox", "  jumps", ""])
    assert [*first, bos, *second, bos, *last] == whole


def test_a_token_that_no_merge_reaches_is_not_taken_for_its_word() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("\u0120", "b"),
        ("a", "\u0120"),
        ("a\u0120", "b"),
    ]  # of `a b` the first merge leaves nothing for the last
    vocabulary = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    standard = StandardEngine(tokenizer)
    fast = KitokenEngine(tokenizer, byte_view(tokenizer), standard)
    texts = ["a b", "xa b", "a bb a", "ab", " b"]
    expected = standard.encode(texts, special_literals=False)
    assert expected[0] == [vocabulary.index("a"), vocabulary.index("\u0120b")]
    assert fast.encode(texts, special_literals=False) == expected
