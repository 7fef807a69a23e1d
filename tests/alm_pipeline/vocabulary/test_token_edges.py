"""The edges of tokens, checked against their text, one token at a time."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view, byte_vocabulary
from alm_pipeline.vocabulary.token_edges import TokenEdge, token_edges
from tests.real_tokenizers import REAL_TOKENIZERS, tokenizer_folder

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
LETTERS = {byte: letter for letter, byte in byte_vocabulary().items()}


def last_character(text: bytes) -> str | None:
    """The character that a text ends with; None if it ends within one."""
    for length in range(1, 5):
        try:
            return text[-length:].decode() if len(text) >= length else None
        except UnicodeDecodeError:
            continue
    return None


def loop_edges(view: ByteView) -> list[int]:
    """The oracle: what the docstrings of `TokenEdge` say, by Python's strings."""
    ordinary = [
        text if text and not special else b"" for text, special in zip(view.spelling, view.special, strict=True)
    ]
    joined = {
        last_character(text[:k])
        for text in ordinary
        for k in range(1, len(text))
        if text[k : k + 1] in (b" ", b"\t", b"\n")
    }
    edges = []
    for text, starts, special in zip(ordinary, view.starts_word, view.special, strict=True):
        last = last_character(text)
        loose = last is not None and (last.isspace() or last in joined)
        flags = (starts or special, loose, text and last is None)
        edges.append(sum(int(bit) for bit, flag in zip(TokenEdge, flags, strict=True) if flag))
    return edges


def of_spellings(spellings: set[bytes]) -> ByteView:
    """A byte-level vocabulary of these tokens, and a special one."""
    tokens = ["".join(LETTERS[byte] for byte in text) for text in sorted(spellings)]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    special = {"id": len(tokens), "content": "<s> .", "single_word": False, "lstrip": False, "rstrip": False}
    added = [{**special, "normalized": False, "special": True}]
    settings = {"version": "1.0", "model": model, "decoder": BYTE_LEVEL, "added_tokens": added}
    return byte_view(Tokenizer.from_str(json.dumps(settings)))


letters = st.sampled_from(["a", ".", "é", "。", "\U0001f600", " ", "\n", "\t", "\r", "\u3000", "\xa0"])
texts = st.lists(letters, min_size=1, max_size=4).map("".join).map(str.encode)
parts = st.tuples(texts, st.integers(0, 3), st.integers(0, 3)).map(
    lambda part: part[0][part[1] : len(part[0]) - part[2]]
)


@settings(deadline=None)
@given(spellings=st.sets(st.one_of(texts, parts).filter(bool), min_size=1, max_size=12))
def test_edges_are_the_loop(spellings: set[bytes]) -> None:
    view = of_spellings(spellings)
    assert token_edges(view).tolist() == loop_edges(view)


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_edges_of_real_vocabularies_are_the_loop(name: str) -> None:
    view = LoadedTokenizer(str(tokenizer_folder(name))).view
    assert token_edges(view).tolist() == loop_edges(view)


@pytest.mark.parametrize(("name", "expected"), [("gpt2", True), ("qwen3", False)])
def test_a_full_stop_ends_a_word_where_no_token_goes_on_after_it(name: str, expected: bool) -> None:
    """Qwen's tokenizer writes a full stop and a line end as one token."""
    view = LoadedTokenizer(str(tokenizer_folder(name))).view
    edges = token_edges(view)[[view.spelling.index(b"."), view.spelling.index(b"a")]]
    assert (edges & np.uint8(TokenEdge.LOOSE_END) == 0).tolist() == [expected, True]


def test_edges_of_a_tokenizer_without_special_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    view = byte_view(byte_level.backend_tokenizer)
    assert token_edges(view).tolist() == loop_edges(view)
