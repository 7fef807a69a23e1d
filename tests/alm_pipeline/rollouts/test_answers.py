"""What was written in a template is read back: reasoning, content and calls, as the template writes them."""

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from alm_pipeline.rollouts.answers import AnswerReader
from alm_pipeline.rollouts.prompts import Prompt
from alm_pipeline.tokenization.chat.template import ChatTemplate
from tests import tiny

# as Qwen 3 writes: thoughts, content, and calls as JSON between tags
TEMPLATE = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
<|im_start|>assistant
{% if m.reasoning_content %}<think>
{{ m.reasoning_content.strip('\n') }}
</think>

{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\\n' }}{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% else -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
USER = [{"role": "user", "content": "Look."}]
END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = tiny.byte_level_tokenizer()
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerFast) -> AnswerReader:
    template = ChatTemplate(tokenizer)
    prompt = Prompt("a", "train", None, USER, {"tools": [{"type": "function", "function": {"name": "look"}}]})
    return AnswerReader(template, prompt, template.prompt(USER, prompt.arguments))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def written(name: str, **arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


READINGS: list[tuple[str, dict[str, Any]]] = [
    ("An answer.", {"content": "An answer."}),
    ("<think>\nHm.\n</think>\n\nAn answer.", {"content": "An answer.", "reasoning_content": "Hm."}),
    (written("look", at="sky"), {"content": "", "tool_calls": [call("look", at="sky")]}),
    ("I look.\n" + written("look", at="sky"), {"content": "I look.", "tool_calls": [call("look", at="sky")]}),
    (
        "<think>\nHm.\n</think>\n\n" + written("look", at="sky", n=3) + "\n" + written("see"),
        {"content": "", "reasoning_content": "Hm.", "tool_calls": [call("look", at="sky", n=3), call("see")]},
    ),
    # what is not a call is content
    ("<tool_call>\n{broken\n</tool_call>", {"content": "<tool_call>\n{broken\n</tool_call>"}),
    ('<tool_call>\n{"name": 3}\n</tool_call>', {"content": '<tool_call>\n{"name": 3}\n</tool_call>'}),
    # written with other spaces than the template's: read as a call, the template would write it otherwise
    (
        '<tool_call>\n{"name":"look","arguments":{}}\n</tool_call>',
        {"content": '<tool_call>\n{"name":"look","arguments":{}}\n</tool_call>'},
    ),
    ("<think>\nnever ends", {"content": "<think>\nnever ends"}),
]


@pytest.mark.parametrize(("text", "expected"), READINGS)
def test_answers_are_read_as_the_template_writes_them(
    reader: AnswerReader, tokenizer: PreTrainedTokenizerFast, text: str, expected: dict[str, Any]
) -> None:
    message = reader.read(text, END)
    assert message == {"role": "assistant", **expected}
    rendered = tokenizer.apply_chat_template([*USER, message], tokenize=False)
    assert rendered == reader.prompt_text + text + END + "\n"


def test_what_the_template_would_change_is_not_read(reader: AnswerReader) -> None:
    assert reader.read("An answer.", "<|endoftext|>") is None
    assert reader.read("<think>\n\nHm.\n</think>\n\nAn answer.", END) is not None  # as content, with its tags


def test_a_template_that_trims_refuses_space_at_the_edges() -> None:
    tokenizer = tiny.sentencepiece_tokenizer()
    template = ChatTemplate(tokenizer)
    prompt = Prompt("a", "train", None, USER, None)
    text = template.prompt(USER) + "<start_of_turn>model\n"
    reader = AnswerReader(template, prompt, text)
    assert reader.read("An answer.", "<end_of_turn>") == {"role": "assistant", "content": "An answer."}
    assert reader.read(" An answer.", "<end_of_turn>") is None
    # a text that was cut may end in space, and nothing is known of what would have followed
    assert reader.read("An answer. ", "") is None
