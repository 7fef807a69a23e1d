"""A real rendering is the scaffold with the contents inserted, or it is not traced."""

from typing import Any

import pytest

from alm_pipeline.conversations.json_leaves import Equal, Spelling
from alm_pipeline.tokenization.chat.tracing import (
    ContentFragment,
    ContentPart,
    cut_at,
    placeholders,
    split_parts,
    template_tags,
    trace,
    whole_parts,
    with_placeholders,
)
from storage.errors import UserError


def fragments(*arguments: Any) -> list[ContentFragment]:
    found = trace(*arguments)
    assert found
    assert not found.strays
    return found.fragments


def test_placeholders_are_in_none_of_the_texts() -> None:
    assert placeholders(2, "a\ue000", "\ue002") == ["\ue001", "\ue003"]
    assert placeholders(0, "a") == []


def test_more_parts_than_placeholders() -> None:
    with pytest.raises(UserError, match="200000 parts"):
        placeholders(200_000)


def test_tags_are_those_in_the_templates_source() -> None:
    markup = template_tags("{{ m.split('</think>')[-1] }}[THINK]{% if a<b and c>d %}")
    assert markup.findall("<think></think>[THINK][/THINK]<b>") == ["</think>", "[THINK]"]
    assert template_tags("{{ m }}").findall("<think>a") == []


def test_parts_contain_neither_tags_nor_the_white_space_beside_them() -> None:
    markup = template_tags("<t></t>")
    contents = ["", " a ", " x <t>\n y z \n</t>\n", "<t> </t>"]
    parts = split_parts(contents, markup)
    assert parts == [ContentPart(1, 0, " a "), ContentPart(2, 0, " x"), ContentPart(2, 8, "y z")]
    assert with_placeholders(contents, parts, "123") == ["", "1", "2 <t>\n 3 \n</t>\n", "<t> </t>"]
    assert whole_parts(["", " "]) == [ContentPart(1, 0, " ")]


@pytest.mark.parametrize(("scaffold", "text"), [("[2][1]", "[y][x]"), ("[1][2][1]", "[x][y][x]")])
def test_texts_that_are_out_of_order_or_repeated(scaffold: str, text: str) -> None:
    contents = ["x", "y"]
    assert trace(text, scaffold, contents, whole_parts(contents), "12") is None


def test_parts_of_calls_that_are_out_of_order_or_repeated_are_strays() -> None:
    contents = ["namevalue"]
    parts = [ContentPart(0, 0, "name", (Spelling("name", (Equal(0, 0, 4),)),))]
    parts.append(ContentPart(0, 4, "value", (Spelling("value", (Equal(0, 0, 5),)),)))
    found = trace("[name][value][name]", "[1][2][1]", contents, parts, "12")
    assert found
    assert found.fragments == [ContentFragment(1, 5, 0, 0), ContentFragment(7, 12, 0, 4)]
    assert [(stray.start, stray.end) for stray in found.strays] == [(14, 18)]
    found = trace("[value][name]", "[2][1]", contents, parts, "12")
    assert found
    assert found.fragments == [ContentFragment(1, 6, 0, 4)]
    assert [(stray.start, stray.end) for stray in found.strays] == [(8, 12)]


def test_a_placeholder_that_is_missing() -> None:
    assert cut_at("[1][3]", "123") == (["[", "][", "]"], [0, 2])


@pytest.mark.parametrize("text", ["[x][y]!", "[x][y", "![x][y]", "[x][z]", "[y][x]", "[x][yy]", "[x ][y]"])
def test_a_rendering_that_is_not_the_scaffold_with_the_parts(text: str) -> None:
    contents = ["x", "y"]
    assert trace(text, "[1][2]", contents, whole_parts(contents), "12") is None
    assert fragments("[x][y]", "[1][2]", contents, whole_parts(contents), "12") == [
        ContentFragment(1, 2, 0, 0),
        ContentFragment(4, 5, 1, 0),
    ]


def test_text_that_follows_the_last_content() -> None:
    assert trace("x!", "1", ["x"], whole_parts(["x"]), "1") is None


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("[ x\n ]", ContentFragment(1, 5, 0, 0)),
        ("[x]", ContentFragment(1, 2, 0, 1)),
        ("[x\n]", ContentFragment(1, 3, 0, 1)),
        ("[ x]", ContentFragment(1, 3, 0, 0)),
    ],
)
def test_white_space_that_is_omitted_at_either_end(text: str, fragment: ContentFragment) -> None:
    contents = [" x\n "]
    assert fragments(text, "[1]", contents, whole_parts(contents), "1") == [fragment]


@pytest.mark.parametrize("text", ["[\tx]", "[x  ]", "[  x]"])
def test_other_white_space_than_the_contents(text: str) -> None:
    contents = [" x\n "]
    assert trace(text, "[1]", contents, whole_parts(contents), "1") is None


def test_a_gap_in_which_the_template_writes_its_own_tags() -> None:
    contents = ["x<t>y"]
    parts = split_parts(contents, template_tags("<t>"))
    marked = fragments("[x\n<t>\ny]", "[1\n<t>\n2]", contents, parts, "12")
    assert marked == [ContentFragment(1, 2, 0, 0), ContentFragment(3, 6, 0, 1), ContentFragment(7, 8, 0, 4)]
    assert fragments("[x<u>y]", "[1<u>2]", contents, parts, "12") == [
        ContentFragment(1, 2, 0, 0),
        ContentFragment(5, 6, 0, 4),
    ]
