"""Which template a setting names: the tokenizer's own, a known one, or a file; anything else is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alm_pipeline.config import TemplateConfig
from alm_pipeline.tokenization.templates.choice import TemplateChoice, known_templates
from storage.errors import UserError

OWN = {"default": "own {{ messages }}", "tool_use": "tools {{ tools }}"}


def chosen(template: str | None, own: Any = OWN, **arguments: Any) -> Any:
    choice = TemplateChoice.of("teacher_template", TemplateConfig(template=template, arguments=arguments))
    return own if choice is None else choice.applied(own, "some/teacher")


def test_names_are_looked_up_in_the_tokenizer_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tool_use").write_text("of a file")
    (tmp_path / "chatml").write_text("of a file")
    assert chosen("tool_use") == OWN["tool_use"]
    assert chosen("default", "the only one") == "the only one"
    assert chosen("chatml") == known_templates()["chatml"].read_text()
    assert chosen("chatml", {"chatml": "its own"}) == "its own"
    assert chosen("./chatml") == "of a file"
    assert chosen("tool_use", None) == "of a file"


@pytest.mark.parametrize("content", [b"{{ messages }}", b"\xef\xbb\xbf{{ messages }}"])
def test_a_file_is_read_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.jinja"
    file.write_bytes(content)
    assert chosen(str(file)) == chosen(f"file://{file}") == "{{ messages }}"


def test_arguments_alone_go_into_the_tokenizers_own_templates() -> None:
    assert chosen(None) is OWN
    assert chosen(None, None, x=1) is None
    baked = chosen(None, x=1)
    assert baked.keys() == OWN.keys()
    assert all(text.endswith(f"\n{OWN[name]}") and "set x = 1" in text for name, text in baked.items())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "own", "sentence"),
    [
        ("chatlm", OWN, "'chatlm' is neither a file nor the name of a template; did you mean chatml?"),
        ("tool_usee", OWN, "did you mean tool_use?"),
        ("none.jinja", None, "some/teacher has none"),
        ("xyz", OWN, "Known names are chatml, plain, and some/teacher has default, tool_use: name one of these"),
        (" ", OWN, "' ' is neither a file"),
        ("folder", OWN, "folder is a folder: name a file"),
        ("empty.jinja", OWN, "empty.jinja is empty"),
        ("latin.jinja", OWN, "latin.jinja is not a text in UTF-8"),
        ("open.jinja", OWN, "open.jinja: is not valid Jinja (line 2: "),
        ("filter.jinja", OWN, "No filter named 'shout'"),
        ("broken", {"broken": "{% if %}"}, "the template broken of some/teacher: is not valid Jinja"),
    ],
)
def test_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, own: Any, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    contents = {"empty": b" \n", "latin": b"\xe9", "open": b"\n{{ messages", "filter": b"{{ messages | shout }}"}
    for stem, content in contents.items():
        (tmp_path / f"{stem}.jinja").write_bytes(content)
    with pytest.raises(UserError) as caught:
        chosen(name, own)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("teacher_template: ")


@pytest.mark.parametrize("name", ["enable_thinking", "tools", "documents", "date_string", "_x", "strftime_now"])
def test_a_setting_of_nothing_chooses_nothing(name: str) -> None:
    assert TemplateChoice.of("s", None) is None
    assert TemplateChoice.of("s", TemplateConfig()) is None
    value: Any = {"tools": [{}], "documents": [{}], "strftime_now": "today"}.get(name, 1)
    choice = TemplateChoice.of("s", TemplateConfig(arguments={name: value}))
    assert choice == TemplateChoice("s", None, {name: value})


def test_yamls_dates_are_texts() -> None:
    text = "{date_string: 2026-11-29, documents: [{day: 2026-11-29}]}"
    choice = TemplateChoice.of_option(None, text)
    assert choice
    assert choice.arguments == {"date_string": "2026-11-29", "documents": [{"day": "2026-11-29"}]}
    assert TemplateChoice.of_option(None, None) is None
    assert TemplateChoice.of_option("chatml", None) == TemplateChoice("--template", "chatml")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"messages": []}, "'messages' is not the name of an argument"),
        ({"add_generation_prompt": True}, "'add_generation_prompt' is not the name"),
        ({"chat_template": "x"}, "'chat_template' is not the name"),
        ({"bos_token": "x"}, "'bos_token' is not the name"),
        ({"two words": 1}, "'two words' is not the name"),
        ({"x-y": 1}, "'x-y' is not the name"),
        ({"not": 1}, "'not' is not the name"),
        ({"é": 1}, "'é' is not the name"),
        ({"x": float("nan")}, "arguments.x is nan"),
        ({"x": [float("inf")]}, r"arguments.x\[0\] is inf"),
        ({"x": {1: 2}}, "arguments.x has the key 1"),
        ({"x": b"y"}, "arguments.x is b'y'"),
        ({"x": "\ud800"}, "arguments.x is"),
        ({"tools": {"name": "look"}}, "tools is a list of mappings"),
        ({"tools": "look"}, "tools is a list of mappings"),
        ({"documents": ["text"]}, "documents is a list of mappings"),
        ({"strftime_now": 2024}, "strftime_now is a date as text"),
        ({"x": json.loads("[" * 40 + "]" * 40)}, "nested more than"),
        ("x", "valid dictionary"),
    ],
)
def test_what_no_template_could_read_is_refused_by_name(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        TemplateConfig(arguments=arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "sentence"), [("{x: [", "can't be read as YAML"), ("7", "valid dictionary"), ("{no: 1}", "key False")]
)
def test_wrong_options_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"--template-arguments.*{sentence}".replace(".*", r"[\s\S]*")):
        TemplateChoice.of_option(None, text)
