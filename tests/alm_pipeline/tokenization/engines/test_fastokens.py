"""What fastokens does not do by itself: digits that are split off, and texts that it can't encode."""

import unicodedata
from itertools import product

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from alm_pipeline.new_tokenizer.trained import train_tokenizer
from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS, random_texts
from alm_pipeline.tokenization.engines.fastokens import FastokensEngine, _individual_digits
from alm_pipeline.tokenization.engines.proof import added_token_texts, first_difference, token_texts
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import byte_view
from tests import tiny

DIGITS = [
    "1",
    "a1",
    "1a",
    "12 345",
    " 1 2",
    "x\u00b2",
    "\u00bd\u00bd",
    "\u0663\u0664 \u0665",
    "\u216b",
    "\U0001d7d8",
    "  7",
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """As the default job trains: every digit is a piece of its own, and most digits are several tokens."""
    texts = [text for text in ADVERSARIAL_TEXTS if len(text) < 500]
    return train_tokenizer(texts, 600, tiny.byte_level_tokenizer()).backend_tokenizer


def engines(tokenizer: Tokenizer) -> tuple[FastokensEngine, StandardEngine]:
    standard = StandardEngine(tokenizer)
    return FastokensEngine(tokenizer, byte_view(tokenizer), standard), standard


@pytest.mark.parametrize("special_literals", [False, True])
def test_digits_are_split_off(trained: Tokenizer, special_literals: bool) -> None:
    fast, standard = engines(trained)
    assert fast._digits is not None
    assert len(fast._digits.pieces) > 1000
    texts = [*ADVERSARIAL_TEXTS, *DIGITS, *random_texts(5, 500), *token_texts(byte_view(trained))]
    texts += [f"<|im_end|>{text}<|im_start|>" for text in DIGITS]
    assert first_difference(fast, standard, special_literals=special_literals, texts=texts) is None


def test_the_digits_are_all_numbers_of_unicode() -> None:
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Nd", "Nl", "No")]
    new = set(_individual_digits()) - set(known)
    assert set(known) <= set(_individual_digits())
    assert {unicodedata.category(digit) for digit in new} <= {"Cn"}  # of a later Unicode than Python's


@pytest.mark.parametrize("step", ["contiguous", "prefix space", "no pattern"])
def test_digits_of_another_kind_are_left_to_fastokens(trained: Tokenizer, step: str) -> None:
    tokenizer = Tokenizer.from_str(trained.to_str())
    digits = pre_tokenizers.Digits(individual_digits=step != "contiguous")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=step == "prefix space", use_regex=step != "no pattern")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    fast, standard = engines(tokenizer)
    assert fast._digits is None
    assert first_difference(fast, standard, special_literals=False, texts=DIGITS) is None


def without_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without tokens for Q and for the first byte of most Arabic letters."""
    lacking = {"Q", "\u00d9"}
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter not in lacking]
    bare = Tokenizer(models.BPE({letter: id_ for id_, letter in enumerate(letters)}, []))
    bare.pre_tokenizer, bare.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    return bare


def test_a_text_with_a_byte_that_the_vocabulary_lacks_is_encoded_by_tokenizers(trained: Tokenizer) -> None:
    fast, standard = engines(without_bytes(trained))
    texts = [f"text {k} {'Q' if k % 7 == 3 else ''}{chr(0x660 + k % 10) if k % 5 == 1 else k}" for k in range(33)]
    with pytest.raises(ValueError, match="no token in vocabulary"):
        fast._tokenizer.encode_batch_flat(texts, False, True)
    assert first_difference(fast, standard, special_literals=False, texts=texts) is None


def test_a_tokenizer_that_fastokens_does_not_read(trained: Tokenizer) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, "a"))
    with pytest.raises(ValueError, match=r"fastokens can't read the tokenizer: .*WordLevel"):
        FastokensEngine(tokenizer, byte_view(trained), StandardEngine(tokenizer))


def test_a_digit_that_is_an_added_token_stays_one(trained: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.add_tokens(["7"])
    fast, standard = engines(tokenizer)
    assert first_difference(fast, standard, special_literals=False, texts=["a77 b8", *DIGITS]) is None


ADDED = {
    "plain": {"normalized": False},
    "normalized": {"normalized": True},
    "lstrip": {"lstrip": True, "normalized": False},
    "rstrip": {"rstrip": True, "normalized": False},
    "a word": {"single_word": True, "normalized": False},
    "a word, normalized": {"single_word": True, "normalized": True},
}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("first", ADDED)
def test_added_tokens_that_fastokens_reads_otherwise_refute_it(first: str, special: bool) -> None:
    """Beside one that is not normalized, a normalized one that has to be a word is not found, in 0.3.5."""
    differing = []
    for second in ADDED:
        tokenizer = tiny.byte_level_tokenizer().backend_tokenizer
        tokenizer.add_tokens([AddedToken("Foo", **ADDED[first], special=special), AddedToken("bar", **ADDED[second])])
        fast, standard = engines(tokenizer)
        texts = ["".join(parts) for parts in product(("Foo", "bar", " ", "x", ""), repeat=4)]
        differs = first_difference(fast, standard, special_literals=special, texts=texts) is not None
        proof = added_token_texts(byte_view(tokenizer))
        assert differs == (first_difference(fast, standard, special_literals=special, texts=proof) is not None)
        differing += [second] if differs else []
    assert ("a word, normalized" in differing) == (first in ("plain", "lstrip", "rstrip"))
