"""The spans of tokens in a text are exact, or None."""

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from alm_pipeline.tokenization.spans import token_spans
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view


def view_of(*tokens: str, special: tuple[AddedToken, ...] = ()) -> ByteView:
    """Return a SentencePiece-style vocabulary with ids in this order."""
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, []))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    tokenizer.add_special_tokens(list(special))
    return byte_view(tokenizer)


def word_pieces(*tokens: str) -> ByteView:
    tokenizer = Tokenizer(models.WordPiece({token: id_ for id_, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_tokens([AddedToken("[MASK]", lstrip=True)])
    return byte_view(tokenizer)


def pieces(view: ByteView, text: str, *ids: int, cut_out: tuple[int, ...] = ()) -> list[str] | None:
    """Return what each token covers."""
    added = np.isin(np.array(ids), cut_out)
    spans = token_spans(view, np.array(ids, np.int32), added, text.encode())
    if spans is None:
        return None
    return [text.encode()[start:end].decode() for start, end in zip(spans.starts, spans.ends, strict=True)]


def test_the_spellings_are_the_text() -> None:
    view = view_of("a", "\u2581b", "\u2581")
    assert pieces(view, "a b ", 0, 1, 2) == ["a", " b", " "]
    assert pieces(view, "") == []


@pytest.mark.parametrize(("text", "ids"), [("ab", [0]), ("a", [0, 0]), ("b", [0]), ("", [0]), ("a ", [0])])
def test_tokens_that_spell_another_text_have_no_spans(text: str, ids: list[int]) -> None:
    assert pieces(view_of("a", "\u2581"), text, *ids) is None


def test_a_dummy_prefix_is_covered_by_no_token() -> None:
    view = view_of("\u2581a", "\u2581", "\u2581\u2581")
    assert pieces(view, "a a", 0, 0) == ["a", " a"]
    assert pieces(view, " a", 1, 0) == ["", " a"]
    assert pieces(view, " ", 2) == [" "]


def test_a_dummy_prefix_after_each_added_token() -> None:
    view = view_of("\u2581a", special=(AddedToken("<s>"),))
    assert pieces(view, "a<s>a a<s>", 0, 1, 0, 0, 1, cut_out=(1,)) == ["a", "<s>", "a", " a", "<s>"]
    # a space of the text is not a dummy prefix
    assert pieces(view, "a<s> a", 0, 1, 0, cut_out=(1,)) == ["a", "<s>", " a"]
    assert pieces(view, "a<s>a", 0, 1, 0) is None


def test_a_space_before_an_added_token_is_not_a_dummy_prefix() -> None:
    view = view_of("\u2581", "\u2581\u2581", special=(AddedToken("<s>"),))
    assert pieces(view, " <s>", 1, 2, cut_out=(2,)) == [" ", "<s>"]
    assert pieces(view, " <s>", 0, 2, cut_out=(2,)) == [" ", "<s>"]


def test_added_tokens_absorb_white_space_beside_them() -> None:
    view = view_of("a", special=(AddedToken("<b>", lstrip=True, rstrip=True), AddedToken("<r>", rstrip=True)))
    assert pieces(view, "a\n <b>\u3000\n\n a", 0, 1, 0, cut_out=(1,)) == ["a", "\n <b>\u3000\n\n ", "a"]
    assert pieces(view, "a<r> <r> ", 0, 2, 2, cut_out=(2,)) == ["a", "<r> ", "<r> "]
    assert pieces(view, "a <r>", 0, 2, cut_out=(2,)) is None


def test_an_added_token_that_the_text_does_not_contain() -> None:
    view = view_of("a", special=(AddedToken("<s>"),))
    assert pieces(view, "aaa", 0, 1, 0, cut_out=(1,)) is None


def test_no_token_covers_white_space_between_word_pieces() -> None:
    view = word_pieces("[UNK]", "play", "##ing", "##s", "ok")
    spans = token_spans(view, np.array([1, 2, 4, 1, 3], np.int32), np.zeros(5, bool), b"  playing\tok \n plays ")
    assert spans is not None
    assert spans.starts.tolist() == [2, 6, 10, 15, 19]
    assert spans.ends.tolist() == [6, 9, 12, 19, 20]
    assert pieces(view, "playx ok", 1, 4) is None
    assert pieces(view, " \n") == []
    assert pieces(view, "ok [MASK] ok", 4, 5, 4, cut_out=(5,)) == ["ok", "[MASK]", "ok"]


def test_only_white_space_may_be_removed() -> None:
    view = word_pieces("[UNK]", "a")
    assert pieces(view, "a\x1ca", 1, 1) is None  # a control character, which is not white space in Unicode
    assert pieces(view, "a\u2003a", 1, 1) == ["a", "a"]
