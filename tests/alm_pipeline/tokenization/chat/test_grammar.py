"""The labels of the template's own text in rendered conversations, for each template."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from alm_pipeline.tokenization.chat.grammar import Grammar, control_tokens
from alm_pipeline.tokenization.chat.template import ChatTemplate
from tests.alm_pipeline.tokenization.chat.templates import TEMPLATES, spans, templated, with_template

SHORT = {
    "BEGIN_OF_TEXT": "bot",
    "START_OF_TURN": "start",
    "ROLE": "role",
    "END_OF_HEADER": "head",
    "CONTENT": "",
    "END_OF_TURN": "end",
    "END_OF_TEXT": "eot",
    "TEMPLATE": "-",
    "TRANSITION": "to",
}
Turns = Sequence[tuple[str, str]]
ROUND = [("user", "U"), ("assistant", "A")]
SYSTEM = [("system", "S"), *ROUND]
TWO_ROUNDS = [*ROUND, ("user", "V"), ("assistant", "B")]


def messages(turns: Turns) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def parts(name: str, turns: Turns | list[dict[str, Any]]) -> list[str]:
    """Return each span as `kind turn text`, and a content without a kind."""
    return parts_of(ChatTemplate(templated(name)), turns)


def parts_of(template: ChatTemplate, turns: Any) -> list[str]:
    conversation = turns if isinstance(turns[0], dict) else messages(turns)
    return [f"{SHORT[kind]} {turn} {text}".lstrip() for kind, turn, text in spans(template.render(conversation))]


def chatml_turn(turn: int, role: str, content: str) -> list[str]:
    start = [f"start {turn} <|im_start|>", f"role {turn} {role}", f"head {turn} \n"]
    return [*start, *([f"{turn} {content}"] if content else []), f"end {turn} <|im_end|>", f"- {turn} \n"]


def llama_turn(turn: int, role: str, content: str) -> list[str]:
    start = [f"start {turn} <|start_header_id|>", f"role {turn} {role}", f"head {turn} <|end_header_id|>\n\n"]
    return [*start, *([f"{turn} {content}"] if content else []), f"end {turn} <|eot_id|>"]


def test_chatml() -> None:
    expected = [*chatml_turn(0, "system", "S"), *chatml_turn(1, "user", "U"), *chatml_turn(2, "assistant", "A")]
    assert parts("chatml", SYSTEM) == expected


@pytest.mark.parametrize("name", ["chatml", "default_system", "qwen3", "chatml_with_eos"])
def test_a_begin_of_text_token_that_starts_every_turn_is_not_a_begin_of_text(name: str) -> None:
    assert not any(part.startswith("bot") for part in parts(name, TWO_ROUNDS))


def test_a_default_system_prompt_belongs_to_no_message() -> None:
    prompt = "- -1 <|im_start|>system\nBe kind.<|im_end|>\n"
    assert parts("default_system", ROUND) == [prompt, *chatml_turn(0, "user", "U"), *chatml_turn(1, "assistant", "A")]
    assert parts("default_system", SYSTEM) == parts("chatml", SYSTEM)


def test_the_end_of_the_text_follows_the_last_turns_end() -> None:
    assert parts("chatml_with_eos", TWO_ROUNDS) == [*parts("chatml", TWO_ROUNDS), "eot 3 <|endoftext|>"]
    assert parts("chatml_with_eos", [("user", "U")])[-1] == "eot 0 <|endoftext|>"


def test_gemma_names_the_assistant_model() -> None:
    assert parts("gemma", ROUND) == [
        "bot -1 <bos>",
        *["start 0 <start_of_turn>", "role 0 user", "head 0 \n", "0 U", "end 0 <end_of_turn>", "- 0 \n"],
        *["start 1 <start_of_turn>", "role 1 model", "head 1 \n", "1 A", "end 1 <end_of_turn>", "- 1 \n"],
    ]


def test_a_system_message_under_the_users_header() -> None:
    assert parts("gemma", SYSTEM)[:9] == [
        "bot -1 <bos>",
        *["start 0 <start_of_turn>", "- 0 user", "head 0 \n", "0 S", "- 0 \n\n"],
        *["1 U", "end 1 <end_of_turn>", "- 1 \n"],
    ]


def test_with_an_empty_system_message_the_header_is_the_users() -> None:
    found = parts("gemma", [("system", ""), *ROUND])
    assert found[1:6] == ["start 1 <start_of_turn>", "role 1 user", "head 1 \n", "- 1 \n\n", "1 U"]


def test_llama3() -> None:
    assert parts("llama3", SYSTEM) == [
        "bot -1 <|begin_of_text|>",
        *[*llama_turn(0, "system", "S"), *llama_turn(1, "user", "U"), *llama_turn(2, "assistant", "A")],
    ]


def test_a_header_for_the_next_answer_belongs_to_no_message() -> None:
    prompt = "- -1 <|start_header_id|>assistant<|end_header_id|>\n\n"
    assert parts("llama3_always_prompting", SYSTEM) == [*parts("llama3", SYSTEM), prompt]
    turns = [("user", "U"), ("assistant", "")]
    assert parts("llama3_always_prompting", turns) == [*parts("llama3", turns), prompt]


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("chatml", "<|im_start|>assistant\n"),
        ("gemma", "<start_of_turn>model\n"),
        ("deepseek", "<｜Assistant｜>"),
        ("glm", "<|assistant|>\n"),
        ("phi3", "<|assistant|>\n"),
        ("vicuna", " ASSISTANT: "),
    ],
)
def test_a_template_that_always_prompts_is_learned_as_one_that_does_not(name: str, prompt: str) -> None:
    template, special, begin, end = TEMPLATES[name]
    prompting = ChatTemplate(with_template(template + "{{ " + repr(prompt) + " }}", special, begin, end))
    usual, found = parts(name, TWO_ROUNDS), parts_of(prompting, TWO_ROUNDS)
    labeled = [part for part in usual if not part.startswith("-")]
    assert [part for part in found if not part.startswith("-")] == labeled


def test_ends_that_truncation_does_not_reveal_are_not_guessed() -> None:
    template, special, begin, end = TEMPLATES["harmony"]
    prompting = ChatTemplate(with_template(template + "<|start|>assistant", special, begin, end))
    found = parts_of(prompting, TWO_ROUNDS)
    assert [part for part in found if not part.startswith("-")] == ["0 U", "1 A", "2 V", "3 B"]


def test_a_date_in_the_system_turn_belongs_to_the_template() -> None:
    date = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    header = "<|start_header_id|>system<|end_header_id|>\n\n"
    found = parts("llama3_dated", SYSTEM)
    assert found == [*parts("llama3", SYSTEM)[:4], f"- 0 {date}", *parts("llama3", SYSTEM)[4:]]
    plain = parts("llama3", ROUND)
    assert parts("llama3_dated", ROUND) == [plain[0], f"- -1 {header}{date}<|eot_id|>", *plain[1:]]


def test_a_role_of_another_name_is_a_role() -> None:
    turns = [*ROUND, ("tool", "T"), ("assistant", "B")]
    assert parts("llama3_dated", turns)[12:17] == llama_turn(2, "ipython", "T")


def test_mistral() -> None:
    assert parts("mistral", TWO_ROUNDS) == [
        *["bot -1 <s>", "start 0 [INST]", "0 U", "end 0 [/INST]", "1 A", "end 1 </s>"],
        *["start 2 [INST]", "2 V", "end 2 [/INST]", "3 B", "end 3 </s>"],
    ]


def test_an_empty_answer_without_a_header_has_its_end() -> None:
    found = parts("mistral", [("user", "U"), ("assistant", "")])
    assert found[2:] == ["0 U", "end 0 [/INST]", "end 1 </s>"]


def test_start_and_role_in_one_token() -> None:
    assert parts("deepseek", [*SYSTEM, ("user", "V")]) == [
        *["bot -1 <｜begin▁of▁sentence｜>", "0 S", "start 1 <｜User｜>", "1 U"],
        *["start 2 <｜Assistant｜>", "2 A", "end 2 <｜end▁of▁sentence｜>", "start 3 <｜User｜>", "3 V"],
    ]
    assert parts("phi3", SYSTEM)[3:7] == ["- 0 \n", "start 1 <|user|>\n", "1 U", "end 1 <|end|>"]


def test_the_header_of_a_call_does_not_belong_to_its_answer() -> None:
    turns = [("user", "U"), ("assistant", ""), ("tool", "T"), ("assistant", "A")]
    assert parts("deepseek", turns)[3:] == [
        *["start 1 <｜Assistant｜>", "end 1 <｜end▁of▁sentence｜>", "- 1 <｜tool▁output▁begin｜>", "2 T"],
        *["- 2 <｜tool▁output▁end｜>", "start 3 <｜Assistant｜>", "3 A", "end 3 <｜end▁of▁sentence｜>"],
    ]


def test_harmony() -> None:
    system = "- -1 <|start|>system<|message|>You are ChatGPT.\nCurrent date: 2024-07-26<|end|>"
    developer = ["start 0 <|start|>", "role 0 developer", "head 0 <|message|>", "- 0 # Instructions\n\n", "0 S"]
    user = ["start 1 <|start|>", "role 1 user", "head 1 <|message|>", "1 U", "end 1 <|end|>"]
    assistant = ["start 2 <|start|>", "role 2 assistant", "- 2 <|channel|>final", "head 2 <|message|>", "2 A"]
    assert parts("harmony", SYSTEM) == [system, *developer, "end 0 <|end|>", *user, *assistant, "end 2 <|return|>"]
    assert "end 1 <|end|>" in parts("harmony", TWO_ROUNDS)


def test_vicuna_has_no_special_tokens_except_around_the_text() -> None:
    preamble = "- -1 A chat between a USER: and an ASSISTANT. "
    assert parts("vicuna", ROUND) == [
        *["bot -1 <s>", preamble, "start 0 USER: ", "0 U", "- 0  "],
        *["start 1 ASSISTANT: ", "1 A", "end 1 </s>"],
    ]
    assert parts("vicuna", SYSTEM)[:5] == ["bot -1 <s>", preamble, "0 S", "- 0  ", "start 1 USER: "]


def test_plain_text_headers() -> None:
    assert parts("alpaca", ROUND)[:5] == ["start 0 ### ", "role 0 Instruction", "head 0 :\n", "0 U", "- 0 \n\n"]


def test_a_turn_that_never_ends_has_no_end() -> None:
    assert parts("glm", ROUND) == [
        *["bot -1 [gMASK]<sop>", "start 0 <|user|>\n", "0 U", "start 1 <|assistant|>\n", "1 A"],
    ]


def test_an_empty_think_block_belongs_to_the_template() -> None:
    found = parts("qwen3", ROUND)
    assert found[6:] == [
        *["start 1 <|im_start|>", "role 1 assistant", "head 1 \n", "- 1 <think>\n\n</think>\n\n"],
        *["1 A", "end 1 <|im_end|>", "- 1 \n"],
    ]


def test_calls_and_answers_of_tools() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "weather"}]}
    tools = [{"role": "tool", "content": "T"}, {"role": "tool", "content": "R"}]
    found = parts("qwen3", [*messages([("user", "U")]), call, *tools, *messages([("assistant", "A")])])
    assert found == [
        *chatml_turn(0, "user", "U"),
        *["start 1 <|im_start|>", "role 1 assistant", "head 1 \n"],
        *['to 2 <tool_call>\n{"name": "', "2 weather", 'to 2 "}\n</tool_call>'],
        *["end 2 <|im_end|>", "- 2 \n"],
        # two answers in one turn of the user
        *["start 3 <|im_start|>", "- 3 user", "head 3 \n", "- 3 <tool_response>\n", "3 T"],
        *["- 3 \n</tool_response>\n<tool_response>\n", "4 R", "- 4 \n</tool_response>", "end 4 <|im_end|>", "- 4 \n"],
        *["start 5 <|im_start|>", "role 5 assistant", "head 5 \n", "- 5 <think>\n\n</think>\n\n"],
        *["5 A", "end 5 <|im_end|>", "- 5 \n"],
    ]


def test_a_call_after_a_content_is_before_the_turns_end() -> None:
    call = {"role": "assistant", "content": "A", "tool_calls": [{"name": "<|im_end|>"}]}
    assert parts("qwen3", [*messages([("user", "U")]), call])[-6:] == [
        "1 A",
        'to 2 \n<tool_call>\n{"name": "',
        "2 <|im_end|>",
        'to 2 "}\n</tool_call>',
        "end 2 <|im_end|>",
        "- 2 \n",
    ]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral", "deepseek", "harmony", "phi3"])
def test_what_a_user_types_is_content(name: str) -> None:
    template = ChatTemplate(templated(name))
    typed = "".join(part.split(" ", 2)[-1] for part in parts_of(template, TWO_ROUNDS))
    found = parts_of(template, [("user", typed), ("assistant", typed.strip()), ("user", "V"), ("assistant", "B")])
    usual = parts_of(template, TWO_ROUNDS)
    assert len(found) == len(usual)
    assert [part for part in found if part[0].isalpha()] == [part for part in usual if part[0].isalpha()]


def test_empty_messages_keep_their_labels() -> None:
    for name in ("chatml", "default_system", "llama3", "gemma", "mistral", "deepseek", "harmony", "phi3"):
        full = parts(name, TWO_ROUNDS)
        for empty in range(4):
            turns = [(role, "" if turn == empty else text) for turn, (role, text) in enumerate(TWO_ROUNDS)]
            assert parts(name, turns) == [part for part in full if not part.startswith(f"{empty} ")]


def test_a_name_after_the_role_leaves_the_role_unknown() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + (' name=' + m['name'] if m['name'] else '') + '\n' }}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    )
    chat = ChatTemplate(with_template(template, ["<|im_start|>", "<|im_end|>"]))
    named = [{"role": "user", "content": "U", "name": "Ann"}]
    assert parts_of(chat, named)[:4] == ["start 0 <|im_start|>", "- 0 user name=Ann", "head 0 \n", "0 U"]


def test_names_that_begin_or_end_alike() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + ('agent' if m['role'] == 'assistant' else 'applicant') + '\n' }}"
        "{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    chat = ChatTemplate(with_template(template, ["<|im_start|>", "<|im_end|>"]))
    found = parts_of(chat, ROUND)
    assert found[:3] == ["start 0 <|im_start|>", "role 0 applicant", "head 0 \n"]
    assert found[5:8] == ["start 1 <|im_start|>", "role 1 agent", "head 1 \n"]


def test_turns_that_end_in_different_ways() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
        "{{ eos_token if m['role'] == 'assistant' else '' }}{{ '\n' }}{% endfor %}"
    )
    chat = ChatTemplate(with_template(template, ["<|im_start|>", "<|im_end|>", "<eos>"], None, "<eos>"))
    ends = [part for part in parts_of(chat, TWO_ROUNDS) if part.startswith("end")]
    assert ends == ["end 0 <|im_end|>", "end 1 <|im_end|><eos>", "end 2 <|im_end|>", "end 3 <|im_end|><eos>"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] }}",
        "{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}<|im_start|>{{ messages[0]['content'] }}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}, {{ m['content'] }}{% endfor %}",
    ],
)
def test_what_the_grammar_does_not_explain_is_template_text(template: str) -> None:
    chat = ChatTemplate(with_template(template, ["<|im_start|>", "<|im_end|>"]))
    assert all(part.startswith(("-", "0 ")) for part in parts_of(chat, [("user", "U")]))


MISTRAL_ENDS = Grammar(
    header=re.compile(r"(?P<start>\[INST\])"), turn_ends={"user": ["[/INST]"], "assistant": ["</s>"]}
)


def labels(text: str, before: int, behind: int, roles: Sequence[str]) -> list[tuple[str, int]]:
    found = MISTRAL_ENDS.label(text, before, behind, roles)
    return [(f"{label.kind.name} {text[label.start : label.end]}", label.turn) for label in found]


def test_the_end_of_another_role_does_not_end_a_turn() -> None:
    assert labels("</s>", 0, 2, ["user", "assistant"]) == [("TEMPLATE </s>", 0)]
    assert labels("</s>", 1, 2, ["user", "assistant"]) == [("END_OF_TURN </s>", 1)]
    assert labels("</s>", 0, 1, ["tool"]) == [("END_OF_TURN </s>", 0)]


def test_template_text_between_two_parts_of_a_content_has_no_role() -> None:
    assert labels("[/INST][INST]", 2, 2, ["user", "assistant", "user"]) == [("TEMPLATE [/INST][INST]", 2)]


def test_the_header_of_a_default_prompt_does_not_belong_to_an_empty_message() -> None:
    found = parts("default_system", [("user", ""), ("assistant", "")])
    assert all(part.startswith("- -1 ") for part in found)


def test_a_begin_of_text_that_also_ends_turns() -> None:
    template = "<eos>{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<eos>' }}{% endfor %}"
    chat = ChatTemplate(with_template(template, ["<|user|>", "<|assistant|>", "<eos>"], "<eos>", "<eos>"))
    assert parts_of(chat, ROUND)[:4] == ["bot -1 <eos>", "start 0 <|user|>", "0 U", "end 0 <eos>"]


def test_an_empty_grammar_explains_nothing() -> None:
    (label,) = Grammar().label("<|im_end|>", 0, 1, ["user", "assistant"])
    assert (label.start, label.end, label.kind.name, label.turn) == (0, 10, "TEMPLATE", 0)


def test_control_tokens_are_special_or_look_like_it() -> None:
    added = [
        ("<s>", True),
        ("<｜User｜>", False),
        ("<|im_end|>", False),
        ("<table>", False),
        ("\n\n", False),
        ("▁▁", False),
    ]
    assert control_tokens(added) == ["<s>", "<｜User｜>", "<|im_end|>"]


def call(**fields: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        **fields,
    }


CALLED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>' + m.content + '</s>' }}"
    "{% elif m.role == 'tool' %}{{ 'result: ' + m.content }}"
    "{% elif m.tool_calls %}{{ '<a>[' + m.tool_calls[0].function.name + m.tool_calls[0].function.arguments + ']' }}"
    "{{ call_end }}{% else %}{{ '<a>' + m.content + '</s>' }}{% endif %}{% endfor %}"
)


def of_called(call_end: str, turns: list[dict[str, Any]]) -> list[str]:
    """Return the parts of a conversation in a template that ends calls in this way."""
    source = "{% set call_end = '" + call_end + "' %}" + CALLED
    return parts_of(ChatTemplate(with_template(source, ["<s>", "<a>", "</s>", "<call>"], "<s>", "</s>")), turns)


def test_a_call_ends_its_turn_before_a_result_without_a_header() -> None:
    turns = [*messages([("user", "U")]), call(), *messages([("tool", "T"), ("assistant", "A")])]
    found = of_called("</s>", turns)
    assert found[3:9] == ["start 1 <a>", "to 2 [", "2 f", "to 2 {}]", "end 2 </s>", "- 2 result: "]


def test_a_call_may_end_its_turn_with_a_token_of_its_own() -> None:
    asked = messages([("user", "U")])
    assert of_called("<call>", [*asked, call()])[-2:] == ["to 2 {}]", "end 2 <call>"]
    assert of_called("<call>", [*asked, call(), *messages([("user", "V"), ("assistant", "A")])])[5:8] == [
        "2 f",
        "to 2 {}]",
        "end 2 <call>",
    ]


def test_an_answers_header_that_is_always_written_after_a_question() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n<|im_start|>assistant\n' }}"
        "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )
    one = ChatTemplate(with_template(template, ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>"))
    assert parts_of(one, TWO_ROUNDS) == parts("chatml", TWO_ROUNDS)


def test_a_templates_own_instructions_are_no_start_of_turn() -> None:
    preamble = "# Preamble\n" + "Be good. " * 10
    template = (
        "{{ '<|im_start|><|system|>" + preamble.replace("\n", "\\n") + "' }}"
        "{% for m in messages %}{{ m.content if m.role == 'system' else '' }}{% endfor %}{{ '<|im_end|>' }}"
        "{% for m in messages if m.role != 'system' %}"
        "{{ '<|' + m.role + '|>' + m.content + '<|im_end|>' }}{% endfor %}"
    )
    special = ["<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    one = ChatTemplate(with_template(template, special, None, "<|im_end|>"))
    assert parts_of(one, SYSTEM)[:3] == ["start 0 <|im_start|><|system|>", f"- 0 {preamble}", "0 S"]
