"""Hostile texts are inert wherever they are shown."""

import unicodedata

import pytest
import yaml

from storage.errors import UserError
from storage.printed.inert import (
    generated,
    markdown,
    markdown_block,
    markdown_code,
    one_line,
    visible,
    yaml_text,
)

HOSTILE = {
    "escape": ("a\x1b[31mb\x1b[0m", r"a\x1b[31mb\x1b[0m"),
    "title": ("\x1b]0;gone\x07", r"\x1b]0;gone\x07"),
    "link": ("\x1b]8;;http://x\x1b\\y", "\\x1b]8;;http://x\\x1b\\y"),
    "c1 csi": ("\x9b31m", r"\x9b31m"),
    "nul": ("a\0b", r"a\x00b"),
    "delete": ("a\x7f", r"a\x7f"),
    "backspace": ("a\b\b", r"a\x08\x08"),
    "carriage return": ("good\rbad", r"good\rbad"),
    "override": ("\u202egpj.exe", r"\u202egpj.exe"),
    "isolate": ("\u2066a\u2069", r"\u2066a\u2069"),
    "mark": ("a\u200fb\u061c", r"a\u200fb\u061c"),
    "zero width": ("a\u200b\u200d\ufeffb", r"a\u200b\u200d\ufeffb"),
    "line separator": ("a\u2028b\u2029c\x85", r"a\u2028b\u2029c\x85"),
    "tag": ("a\U000e0041", r"a\U000e0041"),
    "private": ("\ue000", r"\ue000"),
    "no character": ("\uffff", r"\uffff"),
    "byte": ("a\udcff.jsonl", r"a\xff.jsonl"),
    "surrogate": ("\ud800", r"\ud800"),
    "vertical": ("a\vb\fc", r"a\x0bb\x0cc"),
    "secret": ("https://u:pw@h/a?b=c\x1b", "https://***@h/a?b=***"),
}
MARKUP = ["[bold]x[/bold]", "[/]", "a | b", "`a` ``b``", "<script>alert(1)</script>", "![i](http://x)", "[l](http://x)"]
MARKUP += ["# a", "- a", "1. a", "a * b _c_ ~~d~~", "&amp;", "a\\", ":smile:", "$\\frac{$", "```\nx", "| --- |", "> a"]
MARKUP += ["    code", "  - a", "_a ", "a\\|b", "\\\\|", "|", "1) a", "===", "<http://x>", "\u0663. a"]
MARKUP += ["two\nlines", "---\na: b", "", " ", "\t"]
hostile = pytest.mark.parametrize(("text", "expected"), HOSTILE.values(), ids=HOSTILE)


@pytest.mark.bad_input
@hostile
def test_a_hostile_text_is_escaped_as_python_writes_it(text: str, expected: str) -> None:
    assert visible(text) == one_line(text) == expected
    assert visible(expected) == expected
    assert str(UserError(text)) == expected


def test_every_character_that_is_not_visible_is_escaped() -> None:
    hidden = [char for char in map(chr, range(0x30000)) if unicodedata.category(char)[0] in "CZ" and char != " "]
    assert [char for char in hidden if not one_line(char).isascii()] == []
    letters = "".join(char for char in map(chr, range(0x30000)) if unicodedata.category(char)[0] not in "CZ")
    assert one_line(letters) == letters


def test_lines_and_tabs_stay_in_a_text_but_not_in_a_name() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert one_line("a\tb\nc") == r"a\tb\nc"


@hostile
def test_a_models_text_moves_no_cursor(text: str, expected: str) -> None:
    shown = generated(text)
    assert {char for char in shown if unicodedata.category(char) in ("Cc", "Cs")} <= {"\n", "\t"}
    assert not set(shown) & set("\u061c\u200e\u200f\u202e\u2066\u2069")


def test_a_models_text_keeps_what_people_write() -> None:
    text = "Änderung\n\t東京　👩‍👩‍👧 नमस्‍ते می‌خواهم [bold] a@b.c https://h/x?a=b"
    assert generated(text) == text


@pytest.mark.parametrize("text", [*MARKUP, *(text for text, _ in HOSTILE.values())])
def test_markdown_shows_the_text_as_it_is(text: str) -> None:
    """Rendered by a real parser: one paragraph, one code, one cell, and nothing else."""
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    plain = one_line(text)

    def tokens(source: str) -> list:
        return [part for token in parser.parse(source) for part in (token.children or [token])]

    inline = [token for token in tokens(f"{markdown(text)}") if token.type not in ("paragraph_open", "paragraph_close")]
    assert {token.type for token in inline} <= {"text", "text_special"}
    assert "".join(token.content for token in inline).strip() == plain.strip()
    inline = tokens(f"x {markdown_code(text)}")
    code = "".join(token.content for token in inline if token.type == "code_inline").replace("\\|", "|")
    assert (code.strip() == plain.strip()) != ("\\|" in plain)
    rows = parser.render(f"| a | b |\n| --- | --- |\n| {markdown(text)} | {markdown_code(text)} |\n")
    assert rows.count("<td>") == 2
    assert rows.count("<tr>") == 2
    assert "<script" not in rows
    assert "<a " not in rows
    assert "<img" not in rows
    block = parser.parse(markdown_block(text, "yaml"))
    assert [token.type for token in block] == ["fence"]


@pytest.mark.parametrize("text", [*MARKUP, *(text for text, _ in HOSTILE.values() if "://u:" not in text)])
def test_yaml_is_readable_inert_and_the_same_value(text: str) -> None:
    shown = yaml_text({"a": text, text: ["Änderung"]})
    assert {char for char in shown if not char.isprintable()} <= {"\n"}
    assert shown.encode()
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert yaml.safe_load(shown) == {"a": text, text: ["Änderung"]}
    assert "Änderung" in yaml_text({"a": "Änderung"})
    assert yaml_text({"a": "https://u:pw@h"}) == "a: https://***@h\n"
