"""The bytes of each token, for both families of tokenizers."""

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alm_pipeline.objective.baselines.mined_mapping import mined_mapping
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view, tokens_by_spelling
from storage.errors import UserError


def byte_level_of(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def spelling(tokenizer: PreTrainedTokenizerFast | Tokenizer, token: str) -> bytes:
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    return byte_view(backend).spelling[backend.token_to_id(token)]


def spelled(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    view = byte_view(tokenizer.backend_tokenizer)
    return {token: view.spelling[id_] for token, id_ in tokenizer.get_vocab().items()}


def rows_of(view: ByteView, size: int) -> set[bytes]:
    return {view.spelling[id_] for id_ in np.flatnonzero(view.boundary(size)) if not view.special[id_]}


def test_every_byte_of_the_byte_level_alphabet(byte_level: PreTrainedTokenizerFast) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(spelling(byte_level, letter) for letter in letters) == [bytes([byte]) for byte in range(256)]


def test_the_alphabet_is_what_the_pre_tokenizer_writes(byte_level: PreTrainedTokenizerFast) -> None:
    """It is tested with every byte that occurs in UTF-8: ASCII, and each lead and continuation byte."""
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 0x3F), *range(0xE000, 0x110000, 0xFFF)]))
    pieces = byte_level.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    spelling_of = spelled(byte_level)
    assert b"".join(spelling_of[letter] for piece, _ in pieces for letter in piece) == text.encode()


def test_byte_level_words(byte_level: PreTrainedTokenizerFast) -> None:
    assert spelling(byte_level, "Ġthe") == b" the"
    assert spelling(byte_level, "<|im_end|>") == b"<|im_end|>"


def test_byte_level_token_outside_the_alphabet_is_itself() -> None:
    assert spelling(byte_level_of({"東京": 0}), "東京") == "東京".encode()


def test_byte_level_added_token_is_literal(byte_level: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer.from_str(byte_level.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("Ġliteral", normalized=False)])
    assert spelling(backend, "Ġliteral") == "Ġliteral".encode()
    assert not byte_view(backend).special[backend.token_to_id("Ġliteral")]


def test_sentencepiece_byte_pieces(sentencepiece: PreTrainedTokenizerFast) -> None:
    assert spelling(sentencepiece, "<0x0A>") == b"\n"
    assert spelling(sentencepiece, "<0xFF>") == b"\xff"


def test_sentencepiece_spaces(sentencepiece: PreTrainedTokenizerFast) -> None:
    assert spelling(sentencepiece, "\u2581") == b" "
    assert spelling(sentencepiece, "\u2581\u2581") == b"  "  # an added token
    assert spelling(sentencepiece, "\n\n") == b"\n\n"
    assert spelling(sentencepiece, "<bos>") == b"<bos>"


def test_metaspace_decoder() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581a", -1.0)], unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    assert spelling(tokenizer, "\u2581a") == b" a"


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
def test_shapes_and_special_tokens(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(family)
    view = byte_view(tokenizer.backend_tokenizer)
    assert view.size == len(tokenizer) == len(view.lengths) == len(view.special)
    assert view.lengths.tolist() == [len(text) for text in view.spelling]
    assert view.arrow.to_pylist() == list(view.spelling)
    added = json.loads(tokenizer.backend_tokenizer.to_str())["added_tokens"]
    assert np.flatnonzero(view.special).tolist() == sorted(token["id"] for token in added if token["special"])


def test_an_id_without_a_token_has_an_empty_spelling() -> None:
    view = byte_view(byte_level_of({"a": 0, "b": 3}))
    assert view.spelling == (b"a", b"", b"", b"b")
    assert view.spell(np.array([1, 2], np.int32)) == b""
    assert view.spell(np.array([0, 1, 3], np.int32)) == b"ab"
    assert view.boundary(4).tolist() == [False] * 4


def test_empty_vocabulary() -> None:
    view = byte_view(byte_level_of({}))
    assert view.size == 0
    assert view.boundary(2).tolist() == [False, False]


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
def test_spell(family: str, request: pytest.FixtureRequest) -> None:
    view = byte_view(request.getfixturevalue(family).backend_tokenizer)
    ids = np.array([5, 300, 0, 7, 7, 299], np.int32)
    assert view.spell(ids) == b"".join(view.spelling[id_] for id_ in ids)
    assert view.spell(ids[2:5]) == b"".join(view.spelling[id_] for id_ in ids[2:5])
    assert view.spell(ids[::2]) == b"".join(view.spelling[id_] for id_ in ids[::2])
    assert view.spell(ids[:0]) == b""


def test_spell_does_not_change_the_view(byte_level: PreTrainedTokenizerFast) -> None:
    view = byte_view(byte_level.backend_tokenizer)
    everything = np.arange(view.size, dtype=np.int32)
    assert view.spell(everything) == view.spell(everything) == b"".join(view.spelling)


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
def test_boundary(family: str, request: pytest.FixtureRequest) -> None:
    view = byte_view(request.getfixturevalue(family).backend_tokenizer)
    mask = view.boundary(view.size + 40)
    assert mask.shape == (view.size + 40,)
    assert not mask[view.size :].any()
    assert mask[: view.size][view.special].all()
    boundaries = rows_of(view, view.size)
    assert boundaries == {text for text in view.spelling if text[:1] in (b" ", b"\t", b"\n")}
    assert {b" ", b"\t", b"\n"} <= boundaries
    assert b"\r" in view.spelling


def test_boundary_covers_added_white_space(sentencepiece: PreTrainedTokenizerFast) -> None:
    view = byte_view(sentencepiece.backend_tokenizer)
    assert {b"  ", b"\n\n"} <= rows_of(view, view.size)


def view_with(model: Any, decoder: Any = None, pre_tokenizer: Any = None) -> ByteView:
    tokenizer = Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return byte_view(tokenizer)


def test_word_pieces() -> None:
    model = models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "#": 3}, unk_token="[UNK]")
    view = view_with(model, decoders.WordPiece())
    assert view.spelling == (b"[UNK]", b"a", b"b", b"#")
    assert (view.unknown, view.space, view.drops_space) == (0, None, True)
    # a new word follows white space or punctuation
    assert view.boundary(5).tolist() == [True, True, False, True, False]


def test_end_of_word_marks() -> None:
    view = view_with(models.BPE({"a</w>": 0, "b": 1, "</w>": 2}, [], end_of_word_suffix="</w>"), decoders.BPEDecoder())
    assert view.spelling == (b"a", b"b", b"")
    assert view.drops_space


def test_without_a_decoder_a_token_is_its_own_text() -> None:
    view = view_with(models.BPE({"a\u2581": 0, "<0x41>": 1}, []))
    assert view.spelling == ("a\u2581".encode(), b"<0x41>")
    assert (view.space, view.unknown, view.drops_space) == (None, None, False)


def test_byte_pieces_are_bytes_only_with_byte_fallback() -> None:
    vocabulary = {"<0x41>": 0, "<unk>": 1}
    for fallback, spelling in ((False, b"<0x41>"), (True, b"A")):
        view = view_with(models.BPE(vocabulary, [], byte_fallback=fallback, unk_token="<unk>"), decoders.Metaspace())
        assert (view.spelling[0], view.unknown, view.space) == (spelling, 1, "\u2581")


def test_another_stand_in_for_a_space() -> None:
    view = view_with(models.BPE({"_a": 0, "\u2581a": 1}, []), decoders.Metaspace(replacement="_"))
    assert view.spelling == (b" a", "\u2581a".encode())
    assert view.space == "_"


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Whitespace()]),
        pre_tokenizers.Split(" ", "removed"),
    ],
)
def test_pre_tokenizers_that_remove_white_space(pre_tokenizer: Any) -> None:
    assert view_with(models.BPE({"a": 0}, []), decoders.Fuse(), pre_tokenizer).drops_space


def test_added_tokens_and_the_white_space_they_absorb(byte_level: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer.from_str(byte_level.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("<b>", lstrip=True), AddedToken("<r>", rstrip=True)])
    view = byte_view(backend)
    assert view.added[backend.token_to_id("<b>")] == (True, False)
    assert view.added[backend.token_to_id("<r>")] == (False, True)
    assert view.added[backend.token_to_id("<|im_end|>")] == (False, False)


@pytest.mark.parametrize(
    ("decoder", "named"), [(decoders.CTC(), "CTC"), (decoders.Sequence([decoders.Replace("a", "b")]), "Replace")]
)
def test_other_decoders_are_refused(decoder: Any, named: str) -> None:
    with pytest.raises(UserError, match=rf"decoder has the step {named}, .*not known exactly"):
        view_with(models.BPE({"a": 0}, []), decoder)


def test_a_letter_is_preferred_to_its_byte_fallback(sentencepiece: PreTrainedTokenizerFast) -> None:
    view = byte_view(sentencepiece.backend_tokenizer)
    letter, fallback = sentencepiece.convert_tokens_to_ids("a"), sentencepiece.convert_tokens_to_ids("<0x61>")
    assert view.fallback[fallback]
    assert not view.fallback[letter]
    assert tokens_by_spelling(view)[b"a"] == letter
    assert tokens_by_spelling(view, np.arange(view.size) != letter)[b"a"] == fallback
    assert mined_mapping(view, view)[letter] == letter
