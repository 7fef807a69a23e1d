import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.corpus import cut_text

NASTY = [
    "a", "Z", " ", "  ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", "\x00", ".", "! ", '." ', "。", "！」", "漢", "é",
    "e\u0301", "\u0301", "\u200d", "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "\ufeff", "\u3000", "\u2028", "नि", "한글",
    "𝔘", "word",
]  # fmt: skip
nasty_text = st.lists(st.sampled_from(NASTY) | st.characters(exclude_categories=["Cs"]), max_size=200).map("".join)


@given(nasty_text, st.integers(16, 80))
def test_pieces_join_to_the_text_and_are_short_and_not_empty(text: str, max_bytes: int) -> None:
    pieces = cut_text(text, max_bytes)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= max_bytes for piece in pieces)


@given(nasty_text, st.integers(16, 80))
def test_no_piece_is_a_scrap(text: str, max_bytes: int) -> None:
    pieces = cut_text(text, max_bytes)
    if len(pieces) > 1:
        # the last piece has at least a quarter; a cut may move back by up to three bytes of a character
        assert min(len(piece.encode()) for piece in pieces) >= max_bytes // 4


@given(nasty_text.filter(lambda text: text.strip()), st.integers(16, 80))
def test_a_blank_piece_has_no_room_in_the_one_before(text: str, max_bytes: int) -> None:
    pieces = cut_text(text, max_bytes)
    for before, piece in pairwise(pieces):
        assert not piece.isspace() or len((before + piece).encode()) > max_bytes


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one two three.\n\nfour five\nsix. seven", "one two three.\n\n"),
        ("one two three.\r\n\r\nfour five\nsix. seven", "one two three.\r\n\r\n"),
        ("one two three.\n \t\nfour five\nsix. seven", "one two three.\n \t\n"),
        ("one two three four\nfive. six seven", "one two three four\n"),
        ("one two three four. five six seven", "one two three four."),
        ('one two "three four!" five six seven', 'one two "three four!"'),
        ("一二三四五。六七八九十", "一二三四五。"),
        ("「一二三四。」六七八九十", "「一二三四。」"),
        ("one two three v1.5 five six seven", "one two three v1.5 five"),
        ("one two three four five six   seven", "one two three four five"),
        ("onetwothreefourfivesixseveneight", "onetwothreefourfivesixse"),
    ],
)
def test_the_best_kind_of_place_wins(text: str, first: str) -> None:
    assert cut_text(text, 24)[0] == first


def test_a_good_place_in_the_first_half_is_not_taken() -> None:
    assert cut_text("one.\n\ntwothreefourfivesixseveneightnine", 24)[0] == "one.\n\ntwothreefourfivesi"


def test_a_run_of_spaces_leaves_its_last_one_to_the_next_word() -> None:
    assert cut_text("aaaaaaaaaaaaaaaaaaaa   bbbbbbbbbbbbbb", 24) == ["aaaaaaaaaaaaaaaaaaaa  ", " bbbbbbbbbbbbbb"]


@pytest.mark.parametrize(
    "grapheme", ["e\u0301", "👍🏽", "🇩🇪", "👩\u200d👧", "नि", "\u1112\u1161\u11ab", "☺\ufe0f", "\r\n"]
)
@pytest.mark.parametrize("offset", range(4))
def test_graphemes_stay_whole(grapheme: str, offset: int) -> None:
    for piece in cut_text("x" * offset + grapheme * 40, 32):
        assert piece.removeprefix("x" * offset).replace(grapheme, "") == ""


def test_a_character_with_a_thousand_marks_is_cut() -> None:
    pieces = cut_text("e" + "\u0301" * 1000, 64)
    assert max(len(piece.encode()) for piece in pieces) <= 64
    assert unicodedata.combining(pieces[1][0])


def test_short_and_empty_texts_are_not_cut() -> None:
    assert cut_text("", 16) == []
    assert cut_text("sixteen bytes ok", 16) == ["sixteen bytes ok"]


def test_a_size_that_may_not_fit_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        cut_text("text", 15)


def test_a_long_line_without_any_good_place() -> None:
    assert len(cut_text("a" * 5_000_000, 2048)) == 2442
