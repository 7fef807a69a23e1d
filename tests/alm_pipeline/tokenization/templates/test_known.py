"""The templates that come with the package: what they show, and that it grows with the conversation."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from alm_pipeline.tokenization.templates.choice import known_templates
from alm_pipeline.tokenization.templates.syntax import check_syntax, names_read

TOOLS = [{"type": "function", "function": {"name": "look", "description": "the weather", "parameters": {}}}]
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"city": "Bern"}}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "reasoning_content": "I must look.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "It rains.", "thinking": "That was clear."},
    {"role": "user", "content": [{"type": "text", "text": "Tha"}, {"type": "text", "text": "nks"}]},
    {"role": "assistant", "content": "Bye."},
]
known = pytest.mark.parametrize("name", known_templates())


def source(name: str) -> str:
    return known_templates()[name].read_text(encoding="utf-8")


def rendered(name: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"} if name == "plain" else {}
    texts_and_spans = render_jinja_template([messages], chat_template=source(name), **tokens, **arguments)
    return str(texts_and_spans[0][0])


@known
def test_it_shows_everything(name: str) -> None:
    text = rendered(name, CHAT, tools=TOOLS, documents=[{"title": "Bern", "text": "A town."}])
    for part in ("Be brief.", "Weather?", "I must look.", '"city": "Bern"', "rain", "It rains.", "That was clear."):
        assert part in text
    for part in ("Thanks", "Bye.", "the weather", "A town."):
        assert part in text
    assert text.count("<tool_call>\n{") == 2 + (name == "chatml")


@known
def test_a_conversation_only_grows(name: str) -> None:
    whole = rendered(name, CHAT, tools=TOOLS)
    for count in range(1, len(CHAT)):
        beginning = rendered(name, CHAT[:count], tools=TOOLS)
        assert whole.startswith(beginning)
        if CHAT[count]["role"] == "assistant":
            assert whole.startswith(rendered(name, CHAT[:count], tools=TOOLS, add_generation_prompt=True))


@known
def test_a_call_is_the_same_as_text_and_as_a_mapping(name: str) -> None:
    as_text = [{**CALL, "function": {"name": "look", "arguments": '{"city": "Bern"}'}}]
    both = [rendered(name, [*CHAT[:2], {**CHAT[2], "tool_calls": calls}]) for calls in (as_text, [CALL])]
    assert both[0] == both[1]


@known
def test_reasoning_can_be_left_out(name: str) -> None:
    assert "<think>" not in rendered(name, CHAT, enable_thinking=False)


@known
def test_it_is_valid_and_reads_its_arguments(name: str) -> None:
    check_syntax(source(name), name)
    assert {"messages", "tools", "documents", "enable_thinking", "add_generation_prompt"} <= names_read(source(name))
