"""SentencePiece's BPE with byte fallback, written as BPE of bytes, gives the same ids."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS, random_texts
from alm_pipeline.tokenization.engines.fastokens import FastokensEngine
from alm_pipeline.tokenization.engines.proof import first_difference, token_texts
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import byte_view
from tests import tiny
from tests.real_tokenizers import tokenizer_folder

TEXTS = [text for text in ADVERSARIAL_TEXTS if len(text) < 500]
# characters that the vocabulary has, and others with the same first bytes
MIXED = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from([*" \n\t\u2581>ae", *"".join(TEXTS)[:3000]])))


def changed(change: Callable[[dict[str, Any]], object]) -> Tokenizer:
    """A tokenizer with merges of characters of many scripts, as Gemma's, changed."""
    state = json.loads(tiny.sentencepiece_tokenizer(1500, TEXTS).backend_tokenizer.to_str())
    state["pre_tokenizer"] = None
    change(state)
    return Tokenizer.from_str(json.dumps(state))


def engines(tokenizer: Tokenizer) -> tuple[FastokensEngine, StandardEngine]:
    standard = StandardEngine(tokenizer)
    return FastokensEngine(tokenizer, byte_view(tokenizer), standard), standard


@pytest.fixture(scope="module")
def both() -> tuple[FastokensEngine, StandardEngine]:
    return engines(changed(lambda state: None))


def test_it_is_written_in_bytes(both: tuple[FastokensEngine, StandardEngine]) -> None:
    expansion = both[0]._expansion
    assert expansion is not None
    assert len(expansion.pieces) > 50


@pytest.mark.parametrize("special_literals", [False, True])
def test_adversarial_texts_have_the_same_ids(
    both: tuple[FastokensEngine, StandardEngine], special_literals: bool
) -> None:
    texts = [*ADVERSARIAL_TEXTS, *random_texts(5, 500), *token_texts(byte_view(both[1]._tokenizer))]
    texts += [f"<bos>{text}<end_of_turn>" for text in TEXTS[:50]]
    assert first_difference(*both, special_literals=special_literals, texts=texts) is None


@given(st.lists(MIXED, min_size=1, max_size=8))
@example(["\u1000\u1001", "\u4e00\ufffd", "\U0001f600\U0001f9ff", "<0x41>", "\u2581 \u2581", ""])
def test_any_texts_have_the_same_ids(both: tuple[FastokensEngine, StandardEngine], texts: list[str]) -> None:
    assert first_difference(*both, special_literals=False, texts=texts) is None


def _with_gemmas_split(state: dict[str, Any]) -> None:
    state["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }


def _with_llamas_prefix(state: dict[str, Any]) -> None:
    state["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, state["normalizer"]],
    }


def _without_a_byte_of_a_character(state: dict[str, Any]) -> None:
    """Gemma 2 has no token for the byte of a tab: the character has one."""
    vocabulary = state["model"]["vocab"]
    vocabulary["a lone token"] = vocabulary.pop("<0x61>")


@pytest.mark.parametrize("change", [_with_gemmas_split, _with_llamas_prefix, _without_a_byte_of_a_character])
def test_other_such_tokenizers_are_written_in_bytes_too(change: Callable[[dict[str, Any]], object]) -> None:
    fast, standard = engines(changed(change))
    assert fast._expansion is not None
    texts = [*ADVERSARIAL_TEXTS, *random_texts(6, 300)]
    assert first_difference(fast, standard, special_literals=False, texts=texts) is None


def _with_another_split(state: dict[str, Any]) -> None:
    state["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": "\u2581"},
        "behavior": "MergedWithNext",
        "invert": False,
    }


def _with_spaces(state: dict[str, Any]) -> None:
    _with_gemmas_split(state)
    state["normalizer"] = None


def _without_fallback(state: dict[str, Any]) -> None:
    state["model"]["byte_fallback"] = False


def _without_a_byte(state: dict[str, Any]) -> None:
    vocabulary = state["model"]["vocab"]
    vocabulary["a lone token"] = vocabulary.pop("<0xE2>")


def _with_a_byte_that_is_merged(state: dict[str, Any]) -> None:
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    for left, right in (("<", "0"), ("<0", "x"), ("<0x", "4"), ("<0x4", "1"), ("<0x41", ">")):
        for token in (left, right, left + right):
            vocabulary.setdefault(token, len(vocabulary) + 10)
        merges.append([left, right])


def _with_whole_pieces(state: dict[str, Any]) -> None:
    state["model"]["ignore_merges"] = True


@pytest.mark.parametrize(
    "change",
    [
        _with_another_split,
        _with_spaces,
        _without_fallback,
        _without_a_byte,
        _with_a_byte_that_is_merged,
        _with_whole_pieces,
    ],
)
def test_tokenizers_of_another_kind_are_left_as_they_are(change: Callable[[dict[str, Any]], object]) -> None:
    try:
        fast, _ = engines(changed(change))
    except ValueError:  # fastokens refuses it
        return
    assert fast._expansion is None


@pytest.mark.parametrize(
    "name", ["mistral_7b", *(pytest.param(name, marks=pytest.mark.long) for name in ("gemma2", "gemma3"))]
)
def test_real_tokenizers_are_written_in_bytes(name: str) -> None:
    tokenizer = Tokenizer.from_file(f"{tokenizer_folder(name)}/tokenizer.json")
    fast, standard = engines(tokenizer)
    assert fast._expansion is not None
    texts = [*ADVERSARIAL_TEXTS, *random_texts(7, 300)]
    assert first_difference(fast, standard, special_literals=False, texts=texts) is None
