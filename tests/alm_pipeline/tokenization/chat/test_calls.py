"""Calls of tools and reasoning: found in what templates of every manner write, whichever form they take."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.conversations.sections import REASONING, TOOL_CALLS, joined_text, sections
from alm_pipeline.tokenization.chat.forms import TemplateForm
from alm_pipeline.tokenization.chat.template import ChatTemplate, RenderedConversation, TemplateRefused
from storage.schemas import TokenKind
from tests.alm_pipeline.tokenization.chat.templates import CHATML, spans, with_template

ROLE = "{{ '<|im_start|>' + m['role'] + '\\n' }}"
CONTENT = "{{ m['content'] or '' }}"
FUNCTION = "{% set f = c.function if c.function else c %}"


def of_calls(call: str, *, reasoning: str = "", before: str = "", after: str = "") -> str:
    """A template that writes each call in this way."""
    calls = f"{before}{{% for c in m['tool_calls'] %}}{FUNCTION}{call}{{% endfor %}}{after}"
    return (
        f"{{% for m in messages %}}{ROLE}{reasoning}{CONTENT}{{% if m['tool_calls'] %}}{calls}{{% endif %}}"
        "{{ '<|im_end|>\\n' }}{% endfor %}"
    )


MANNERS: dict[str, str] = {
    "hermes": of_calls(
        r"""{{ '\n<tool_call>\n{"name": "' + f.name + '", "arguments": ' }}"""
        r"""{{ f.arguments | tojson }}{{ '}\n</tool_call>' }}"""
    ),
    "qwen3": of_calls(
        r"""{{ '\n<tool_call>\n{"name": "' + f.name + '", "arguments": ' }}"""
        r"""{% if f.arguments is string %}{{ f.arguments }}{% else %}{{ f.arguments | tojson }}{% endif %}"""
        r"""{{ '}\n</tool_call>' }}"""
    ),
    "llama": of_calls(r"""{{ '{"name": "' + f.name + '", "parameters": ' }}{{ f.arguments | tojson }}{{ '}' }}"""),
    "mistral": of_calls(
        r"""{% if c.id is not defined or c.id|length != 9 %}{{ raise_exception('ids of 9') }}{% endif %}"""
        r"""{{ f | tojson }}{{ ', "id": "' + c.id + '"}' }}""",
        before="[TOOL_CALLS][",
        after="]",
    ),
    "deepseek": of_calls(r"""{{ '<call>' + f.name + '\n```json\n' + f.arguments + '\n```</call>' }}"""),
    "ascii": of_calls(r"""{{ f.name + ' ' + (f.arguments | tojson(ensure_ascii=True)) }}"""),
    "compact": of_calls(r"""{{ f.name + ' ' + (f.arguments | tojson(separators=(',', ':'))) }}"""),
    "xml": of_calls(
        r"""{{ '<function=' + f.name + '>' }}{% for k, v in f.arguments.items() %}{{ '\n<parameter=' + k + '>\n' }}"""
        r"""{{ v if v is string else v | tojson }}{{ '\n</parameter>' }}{% endfor %}{{ '</function>' }}"""
    ),
    "python": of_calls(
        r"""{{ '[' + f.name + '(' }}{% for k, v in f.arguments.items() %}"""
        r"""{{ k + '=' + (v | tojson) + ', ' }}{% endfor %}{{ ')]' }}"""
    ),
    "sorted": of_calls(r"""{{ f.name + (f.arguments | tojson(sort_keys=True)) }}"""),
    "named twice": of_calls(r"""{{ f.name + ': ' + (f.arguments | tojson) + ' # ' + f.name }}"""),
    "arguments first": of_calls(r"""{{ (f.arguments | tojson) + ' for ' + f.name }}"""),
    "hidden": CHATML,
}
ARGUMENTS = {"city": 'Bern "x"\né', "n": 3, "deep": {"a": [1.5, True, None]}, "empty": ""}
TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)


def call(arguments: Any, name: str = "look", **more: Any) -> dict[str, Any]:
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat(*calls: dict[str, Any], content: str = "", **more: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": content, "tool_calls": list(calls), **more},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]


def template(name: str) -> ChatTemplate:
    return ChatTemplate(with_template(MANNERS[name], ["<|im_start|>", "<|im_end|>"]))


def shown(rendering: RenderedConversation | None, section: int, kind: str = "CONTENT") -> list[str]:
    return [text for of, turn, text in spans(rendering) if (of, turn) == (kind, section)]


FORMS = {
    "hermes": "mapping",
    "qwen3": None,
    "llama": "mapping",
    "mistral": "mapping",
    "deepseek": "text",
    "ascii": "mapping",
    "compact": "mapping",
    "xml": "mapping",
    "python": "mapping",
    "sorted": "mapping",
    "named twice": "mapping",
    "arguments first": "mapping",
    "hidden": None,
}


@pytest.mark.parametrize("name", MANNERS)
def test_the_form_that_a_template_takes(name: str) -> None:
    form = template(name).form
    assert form.arguments == FORMS[name]
    assert (form.needs_ids, form.short_ids) == (name == "mistral", name == "mistral")


@pytest.mark.parametrize("name", sorted({*MANNERS} - {"mistral"}))
@pytest.mark.parametrize("given", [ARGUMENTS, TEXT], ids=["mapping", "text"])
def test_it_is_rendered_in_the_form_that_the_template_takes(name: str, given: Any) -> None:
    one, form = template(name), FORMS[name]
    own = ARGUMENTS if form == "mapping" else TEXT if form == "text" else given
    rendering = one.render(chat(call(given)))
    assert rendering
    assert rendering.text == one.tokenizer.apply_chat_template(chat(call(own)), tokenize=False)


CITY = r"Bern \"x\"\né"
LEAVES = ["city", CITY, "n", "3", "deep", "a", "1.5", "true", "null", "empty"]
SHOWN = ("hermes", "qwen3", "llama", "mistral", "deepseek", "compact", "named twice", "python")


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("given", [ARGUMENTS, TEXT], ids=["mapping", "text"])
def test_names_keys_and_values_are_content(name: str, given: Any) -> None:
    rendering = template(name).render(chat(call(given)))
    assert "".join(shown(rendering, 2)) == "".join(["look", *LEAVES])


def test_what_a_template_spells_in_another_way_is_content_where_it_agrees() -> None:
    ascii_ = "".join(shown(template("ascii").render(chat(call(ARGUMENTS))), 2))
    assert ascii_ == "".join(["look", *LEAVES]).replace("é", "")
    xml = shown(template("xml").render(chat(call(ARGUMENTS))), 2)
    assert xml == ["look", "city", "Bern ", "x", "é", *LEAVES[2:]]


@pytest.mark.parametrize(
    ("name", "found"),
    [("sorted", ["look", *LEAVES[:2], *LEAVES[4:]]), ("arguments first", LEAVES)],
)
def test_what_is_written_in_another_order_is_no_content(name: str, found: list[str]) -> None:
    assert "".join(shown(template(name).render(chat(call(ARGUMENTS))), 2)) == "".join(found)


def test_a_template_that_shows_no_calls() -> None:
    rendering = template("hidden").render(chat(call(ARGUMENTS)))
    assert shown(rendering, 2) == []
    assert shown(rendering, 3) == ["rain"]


def test_transitions_lead_from_part_to_part() -> None:
    rendering = template("hermes").render(chat(call({"a": 1}), call({}, "go"), content="Let me look."))
    kinds = [
        (kind, text) for kind, turn, text in spans(rendering) if turn in (1, 2) and kind in ("CONTENT", "TRANSITION")
    ]
    assert kinds == [
        ("CONTENT", "Let me look."),
        ("TRANSITION", '\n<tool_call>\n{"name": "'),
        ("CONTENT", "look"),
        ("TRANSITION", '", "arguments": {"'),
        ("CONTENT", "a"),
        ("TRANSITION", '": '),
        ("CONTENT", "1"),
        ("TRANSITION", '}}\n</tool_call>\n<tool_call>\n{"name": "'),
        ("CONTENT", "go"),
        ("TRANSITION", '", "arguments": {}}\n</tool_call>'),
    ]


def test_an_id_is_neither_content_nor_a_transition() -> None:
    rendering = template("mistral").render(chat(call({"a": 1}, id="abcdefghi"), call({"b": 2}, id="ABCDEFGHI")))
    transitions = shown(rendering, 2, "TRANSITION")
    assert transitions == ['[TOOL_CALLS][{"name": "', *['", "arguments": {"', '": '] * 2]
    assert any("abcdefghi" in text for text in shown(rendering, 2, "TEMPLATE"))


@pytest.mark.parametrize("id_", [None, "call_0123456789", "abcdefghi"])
def test_ids_are_made_where_a_template_wants_them(id_: str | None) -> None:
    more = {} if id_ is None else {"id": id_}
    rendering = template("mistral").render(chat(call({"a": 1}, **more)))
    assert rendering
    assert f'"id": "{id_ if id_ == "abcdefghi" else "000000001"}"' in rendering.text


def test_results_name_the_ids_of_their_calls() -> None:
    form = TemplateForm(needs_ids=True, short_ids=True)
    chats: list[list[dict[str, Any]]] = [
        [{"role": "assistant", "tool_calls": [call({}, id="long id 1"), call({}, id="long id 2")]}],
        [{"role": "assistant", "tool_calls": [call({}), call({})]}],
    ]
    answers: list[list[str | None]] = [["long id 2", "long id 1"], [None, None]]
    for messages, ids in zip(chats, answers, strict=True):
        messages += [{"role": "tool", "content": "", **({"tool_call_id": id_} if id_ else {})} for id_ in ids]
    asked = [[c["id"] for c in form.messages(messages)[0]["tool_calls"]] for messages in chats]
    answered = [[message["tool_call_id"] for message in form.messages(messages)[1:]] for messages in chats]
    assert asked == [["000000001", "000000002"]] * 2
    assert answered == [["000000002", "000000001"], ["000000001", "000000002"]]


THINKING = of_calls(
    r"""{{ '\n<tool_call>' + f.name + (f.arguments | tojson) + '</tool_call>' }}""",
    reasoning="{% if m['KEY'] %}{{ '<think>\\n' + m['KEY'] + '\\n</think>\\n\\n' }}{% endif %}",
)


@pytest.mark.parametrize("read", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("given", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_given_under_the_key_that_a_template_reads(given: str, read: str) -> None:
    one = ChatTemplate(with_template(THINKING.replace("KEY", read), ["<|im_start|>", "<|im_end|>"]))
    messages = chat(call({"a": 1}), content="So.", **{given: "Hm."})
    rendering = one.render(messages)
    assert [section.role for section in sections(messages)] == [
        "user", REASONING, "assistant", TOOL_CALLS, "tool", "assistant",
    ]  # fmt: skip
    assert [shown(rendering, section) for section in range(6)] == [
        ["Weather?"], ["Hm."], ["So."], ["look", "a", "1"], ["rain"], ["It rains."],
    ]  # fmt: skip
    assert shown(rendering, 1, "TRANSITION") == ["<think>\n"]
    assert shown(rendering, 2, "TRANSITION") == ["\n</think>\n\n"]


def test_an_empty_block_of_thoughts_opens_nothing() -> None:
    thoughts = "{% if m['tool_calls'] %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    manner = of_calls("{{ '<tool_call>' + f.name + (f.arguments | tojson) }}", reasoning=thoughts)
    rendering = ChatTemplate(with_template(manner, ["<|im_start|>", "<|im_end|>"])).render(chat(call({"a": 1})))
    assert shown(rendering, 2, "TRANSITION") == ["<tool_call>", '{"', '": ', "}"]
    assert shown(rendering, 1, "TEMPLATE") == ["<think>\n\n</think>\n\n"]


def test_reasoning_that_is_not_shown_leads_nowhere() -> None:
    rendering = template("hermes").render(chat(call({"a": 1}), reasoning_content="Hm."))
    assert shown(rendering, 1) == []
    assert shown(rendering, 3)[0] == "look"
    assert '\n<tool_call>\n{"name": "' in [text for kind, _, text in spans(rendering) if kind == "TEMPLATE"]


@pytest.mark.parametrize("bad", [None, "", "no JSON", "[1]", '{"a": 1, "a": 2}', [1, {"a": 2}], 3, True])
@pytest.mark.parametrize("name", ["hermes", "deepseek", "qwen3", "xml"])
def test_arguments_that_are_no_mapping_are_exact_or_refused(bad: Any, name: str) -> None:
    messages = chat(call(bad))
    try:
        rendering = template(name).render(messages)
    except TemplateRefused:
        return
    assert rendering
    assert_exact(rendering, messages)


def assert_exact(rendering: RenderedConversation, messages: list[dict[str, Any]]) -> None:
    text, joined = rendering.text.encode(), joined_text(messages).encode()
    start = covered = 0
    for end, kind, at in zip(rendering.ends, rendering.kinds, rendering.content_starts, strict=True):
        if kind == TokenKind.CONTENT:
            assert at >= covered
            covered = at + end - start
            assert text[start:end] == joined[at:covered]
        else:
            assert at == -1
        start = end
    assert start == len(text)
    owners = [turn for turn in rendering.turns.tolist() if turn >= 0]
    assert owners == sorted(owners)


STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(
    ["look", '"', "\\n", "\n", "</tool_call>", "900000001", "\ue000", "{", '", "arguments": ', " ", "<|im_end|>"]
)
JSON = st.recursive(
    STRINGS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(
    lambda name, arguments, as_text: call(json.dumps(arguments) if as_text else arguments, name),
    st.sampled_from(["look", "arguments", "name", 'a"b']),
    st.dictionaries(STRINGS, JSON, max_size=3),
    st.booleans(),
)
TEMPLATES = {name: template(name) for name in MANNERS}


@given(st.sampled_from(sorted(MANNERS)), st.lists(CALLS, min_size=1, max_size=3), STRINGS, STRINGS)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_call_is_exact(name: str, calls: list[dict[str, Any]], content: str, reasoning: str) -> None:
    messages = chat(*calls, content=content, reasoning_content=reasoning)
    rendering = TEMPLATES[name].render(messages)
    assert rendering
    assert_exact(rendering, messages)
    if name == "hermes" and all(isinstance(c["function"]["arguments"], dict) for c in calls):
        own = [(index, section.text) for index, section in enumerate(sections(messages)) if section.role == TOOL_CALLS]
        assert ["".join(shown(rendering, index)) for index, _ in own] == [text for _, text in own]
