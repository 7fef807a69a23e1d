"""Texts are cut to the student's tokens, with real tokenizers of each kind."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.corpus.token_cutting import CountedPiece
from storage.errors import UserError
from tests.alm_pipeline.corpus.limits import KINDS, encoder, limit
from tests.alm_pipeline.corpus.test_cutting import NASTY

LITERALS = ["the", "word", "    ", "<|im_end|>", "<bos>", "</s>", "\u2581", "<0x0A>", "The quick brown fox", " 12345"]
texts = st.lists(st.sampled_from(NASTY + LITERALS) | st.characters(exclude_categories=["Cs"]), max_size=300).map(
    "".join
)
kinds = st.sampled_from(sorted(KINDS))


@settings(deadline=None)  # the first example of a kind trains its tokenizer
@given(texts, kinds, st.integers(24, 90), st.none() | st.integers(16, 200))
def test_pieces_join_to_the_text_and_fit(text: str, kind: str, context: int, max_bytes: int | None) -> None:
    pieces = limit(kind, context).cut_text(text, max_bytes)
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(piece.text.encode()) <= (max_bytes or 10**6) for piece in pieces)
    frame = encoder(kind).frame
    # counted in another way than by the ends of tokens
    bodies = encoder(kind).standard.encode([piece.text for piece in pieces], special_literals=False).lists()
    assert [piece.tokens for piece in pieces] == [len(body) + frame for body in bodies]
    assert max((piece.tokens for piece in pieces), default=0) <= context


@settings(deadline=None)  # the first example of a kind trains its tokenizer
@given(texts, kinds, st.integers(24, 90))
def test_no_piece_is_a_scrap(text: str, kind: str, context: int) -> None:
    pieces = limit(kind, context).cut_text(text, 10_000)
    if len(pieces) > 1:
        # a token is at least a byte, apart from a space in front; a cut may move back by a character
        assert min(len(piece.text.encode()) for piece in pieces) >= (context - encoder(kind).frame) // 4 - 4


@settings(deadline=None)  # the first example of a kind trains its tokenizer
@given(texts.filter(lambda text: text.strip()), kinds, st.integers(24, 90))
def test_a_blank_piece_has_no_room_in_the_one_before(text: str, kind: str, context: int) -> None:
    cutting = limit(kind, context)
    for before, piece in pairwise(cutting.cut_text(text, 200)):
        joined = before.text + piece.text
        fits = len(cutting.lengths.token_ends(joined)) <= cutting.room and len(joined.encode()) <= 200
        assert not (piece.text.isspace() and fits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_fits_is_left_alone(kind: str) -> None:
    cutting = limit(kind, 40)
    frame = encoder(kind).frame
    text = "The quick brown fox."
    assert cutting.cut_text(text, 10_000) == [CountedPiece(text, len(cutting.lengths.token_ends(text)) + frame)]
    assert cutting.cut_text("", 10_000) == []


def test_the_last_token_that_fits_is_used() -> None:
    exact = "abcdefgh" * 8
    assert [piece.text for piece in limit("bytes", 64).cut_text(exact, 10_000)] == [exact]
    assert len(limit("bytes", 64).cut_text(exact + "i", 10_000)) == 2


def test_bytes_are_the_limit_where_they_end_first() -> None:
    pieces = limit("byte_level", 500).cut_text("The quick brown fox jumps over the lazy dog. " * 40, 100)
    assert {len(piece.text.encode()) for piece in pieces[:-2]} <= {89, 90}
    assert max(piece.tokens for piece in pieces) < 50


def test_a_sentence_near_the_end_is_taken_before_a_blank_line_further_up() -> None:
    text = "a" * 40 + ".\n\n" + "b" * 14 + ". " + "c" * 60
    assert limit("bytes", 64).cut_text(text, 10_000)[0].text == "a" * 40 + ".\n\n" + "b" * 14 + "."
    assert (
        limit("bytes", 64).cut_text(text.replace("b", "c").replace("c. ", "ccc"), 10_000)[0].text == "a" * 40 + ".\n\n"
    )


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "bytes"])
@pytest.mark.parametrize("unit", ["a", "漢", "🇩🇪", "e\u0301", "=", " \n"])
def test_the_time_is_linear_in_a_line_without_any_good_place(kind: str, unit: str) -> None:
    text = unit * 6_000
    pieces = limit(kind, 128).cut_text(text, 4096)
    assert "".join(piece.text for piece in pieces) == text
    assert max(piece.tokens for piece in pieces) <= 128


def test_windows_follow_texts_of_other_density() -> None:
    text = " " * 30_000 + "漢字" * 2000 + "The quick brown fox. " * 500
    pieces = limit("added_tokens", 100).cut_text(text, 1_000_000)
    assert "".join(piece.text for piece in pieces) == text
    uses = [piece.tokens / 100 for piece in pieces[:-1]]
    assert max(uses) <= 1
    assert sum(uses) / len(uses) > 0.9


@pytest.mark.bad_input
@pytest.mark.parametrize(("kind", "context"), [("bytes", 15), ("sentencepiece", 16), ("metaspace", 18)])
def test_a_context_without_room_for_a_text_is_refused(kind: str, context: int) -> None:
    assert limit(kind, context + 1).room == 16
    with pytest.raises(UserError, match=rf"^student\.model: its context of {context} tokens leaves 15 for a text"):
        limit(kind, context)
