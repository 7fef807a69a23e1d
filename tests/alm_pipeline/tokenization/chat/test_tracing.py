"""A real rendering is a scaffold with the contents in place, or nothing is known about it."""

import pytest

from alm_pipeline.tokenization.chat.tracing import (
    Fragment,
    Part,
    cut_at,
    known_markup,
    placeholders,
    split_parts,
    trace,
    whole_parts,
    with_placeholders,
)
from storage.errors import UserError


def test_placeholders_are_in_none_of_the_texts() -> None:
    assert placeholders(2, "a\ue000", "\ue002") == ["\ue001", "\ue003"]
    assert placeholders(0, "a") == []


def test_more_parts_than_placeholders() -> None:
    with pytest.raises(UserError, match="200000 parts"):
        placeholders(200_000)


def test_known_markup_is_what_the_template_spells() -> None:
    markup = known_markup("{{ m.split('</think>')[-1] }}[THINK]{% if a<b and c>d %}")
    assert markup.findall("<think></think>[THINK][/THINK]<b>") == ["</think>", "[THINK]"]
    assert known_markup("{{ m }}").findall("<think>a") == []


def test_parts_leave_out_markup_and_the_white_space_beside_it() -> None:
    markup = known_markup("<t></t>")
    contents = ["", " a ", " x <t>\n y z \n</t>\n", "<t> </t>"]
    parts = split_parts(contents, markup)
    assert parts == [Part(1, 0, " a "), Part(2, 0, " x"), Part(2, 8, "y z")]
    assert with_placeholders(contents, parts, "123") == ["", "1", "2 <t>\n 3 \n</t>\n", "<t> </t>"]
    assert whole_parts(["", " "]) == [Part(1, 0, " ")]


@pytest.mark.parametrize("scaffold", ["[2][1]", "[1][2][1]"])
def test_placeholders_out_of_order_or_twice(scaffold: str) -> None:
    assert cut_at(scaffold, "12") is None


def test_what_a_placeholder_is_missing_from() -> None:
    assert cut_at("[1][3]", "123") == (["[", "][", "]"], [0, 2])


@pytest.mark.parametrize("text", ["[x][y]!", "[x][y", "![x][y]", "[x][z]", "[y][x]", "[x][yy]", "[x ][y]"])
def test_a_rendering_that_is_not_the_scaffold_with_the_parts(text: str) -> None:
    contents = ["x", "y"]
    assert trace(text, "[1][2]", contents, whole_parts(contents), "12") is None
    assert trace("[x][y]", "[1][2]", contents, whole_parts(contents), "12") == [
        Fragment(1, 2, 0, 0),
        Fragment(4, 5, 1, 0),
    ]


def test_text_that_follows_the_last_content() -> None:
    assert trace("x!", "1", ["x"], whole_parts(["x"]), "1") is None


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("[ x\n ]", Fragment(1, 5, 0, 0)),
        ("[x]", Fragment(1, 2, 0, 1)),
        ("[x\n]", Fragment(1, 3, 0, 1)),
        ("[ x]", Fragment(1, 3, 0, 0)),
    ],
)
def test_white_space_that_is_left_out_at_either_end(text: str, fragment: Fragment) -> None:
    contents = [" x\n "]
    assert trace(text, "[1]", contents, whole_parts(contents), "1") == [fragment]


@pytest.mark.parametrize("text", ["[\tx]", "[x  ]", "[  x]"])
def test_other_white_space_than_the_contents(text: str) -> None:
    contents = [" x\n "]
    assert trace(text, "[1]", contents, whole_parts(contents), "1") is None


def test_a_gap_in_which_the_template_writes_markup_of_its_own() -> None:
    contents = ["x<t>y"]
    parts = split_parts(contents, known_markup("<t>"))
    marked = trace("[x\n<t>\ny]", "[1\n<t>\n2]", contents, parts, "12")
    assert marked == [Fragment(1, 2, 0, 0), Fragment(3, 6, 0, 1), Fragment(7, 8, 0, 4)]
    assert trace("[x<u>y]", "[1<u>2]", contents, parts, "12") == [Fragment(1, 2, 0, 0), Fragment(5, 6, 0, 4)]
