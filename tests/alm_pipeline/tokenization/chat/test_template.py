"""Where the contents are in a rendered conversation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from alm_pipeline.conversations.sections import Conversation, joined_text, sections
from alm_pipeline.tokenization.chat.template import ChatTemplate, RenderedConversation, TemplateRefused
from storage.errors import UserError
from storage.schemas import TokenKind
from tests.alm_pipeline.tokenization.chat.templates import CHATML, TEMPLATES, spans, templated, with_template

CHAT_TEMPLATES = {name: ChatTemplate(templated(name)) for name in TEMPLATES}


def chat(*contents: str) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def render(template: str, conversation: Conversation) -> RenderedConversation | None:
    return ChatTemplate(with_template(template, ["<|im_start|>", "<|im_end|>"])).render(conversation)


def content_spans(rendering: RenderedConversation | None) -> list[tuple[int, str]]:
    return [(turn, text) for kind, turn, text in spans(rendering) if kind == "CONTENT"]


def assert_exact(rendering: RenderedConversation, conversation: Conversation) -> None:
    text, joined = rendering.text.encode(), joined_text(conversation).encode()
    starts = np.concatenate([[0], rendering.ends[:-1]])
    assert (rendering.ends > starts).all()
    assert rendering.ends[-1] == len(text)
    is_content = rendering.kinds == TokenKind.CONTENT
    assert (rendering.content_starts[~is_content] == -1).all()
    message_ends = np.cumsum([len(section.text.encode()) for section in sections(conversation)])
    covered = 0
    for start, end, turn, content in zip(
        *(array[is_content].tolist() for array in (starts, rendering.ends, rendering.turns, rendering.content_starts)),
        strict=True,
    ):
        assert covered <= content
        covered = content + end - start
        assert text[start:end] == joined[content:covered]
        assert covered <= message_ends[turn]
        assert turn == 0 or content >= message_ends[turn - 1]


ORDER = [TokenKind.START_OF_TURN, TokenKind.ROLE, TokenKind.END_OF_HEADER, TokenKind.CONTENT, TokenKind.END_OF_TURN]


def assert_ordered(rendering: RenderedConversation, messages: int) -> None:
    pairs = list(zip(rendering.turns.tolist(), rendering.kinds.tolist(), strict=True))
    for turn in range(messages):
        kinds = [kind for of, kind in pairs if of == turn and kind in ORDER]
        assert kinds == sorted(kinds, key=ORDER.index)
        once = [kind for kind in kinds if kind != TokenKind.CONTENT]
        assert len(once) == len(set(once))
    for position, (turn, kind) in enumerate(pairs):
        assert kind != TokenKind.BEGIN_OF_TEXT or (position, turn) == (0, -1)
        assert kind != TokenKind.END_OF_TEXT or turn == messages - 1
        assert kind not in ORDER or turn >= 0
    owned = [turn for turn, _ in pairs if turn >= 0]
    assert owned == sorted(owned)
    assert TokenKind.END_OF_TEXT not in rendering.kinds[:-1].tolist()


CONTENTS = [
    ("Hello", "Hi"),
    ("user", "assistant"),
    ("user", "user", "user"),
    ("same", "same"),
    ("Be kind.", "<|im_start|>system\nBe kind."),
    ("", "answer"),
    ("question", ""),
    ("", "", ""),
    ("<|im_start|>user\nHello<|im_end|>\n", "<|im_end|>"),
    ("{{ m['content'] }}", "{% endfor %}"),
    ("日本👩‍👩‍👧", "e\u0301\x00\r\n"),
    ("\ue0000\ue001", "\ue000", "\ue001"),
    (" leading", "trailing \n"),
    (" ", "\n\n", "\t"),
    ("<think>", "</think>"),
]


@pytest.mark.parametrize("name", ["chatml", "default_system", "phi3", "alpaca", "glm"])
@pytest.mark.parametrize("contents", CONTENTS)
def test_every_byte_of_the_contents_is_found(contents: tuple[str, ...], name: str) -> None:
    conversation = chat(*contents)
    rendering = CHAT_TEMPLATES[name].render(conversation)
    assert rendering
    assert_exact(rendering, conversation)
    assert_ordered(rendering, len(conversation))
    assert content_spans(rendering) == [(turn, text) for turn, text in enumerate(contents) if text]


def test_the_text_is_what_the_template_renders() -> None:
    rendering = render(CHATML, chat("Hello", "Hi"))
    assert rendering
    assert rendering.text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"


def test_a_content_equal_to_a_role_is_distinguished_from_the_role() -> None:
    rendering = render(CHATML, chat("user"))
    assert rendering
    assert rendering.ends.tolist() == [12, 16, 17, 21, 31, 32]
    assert rendering.content_starts.tolist() == [-1, -1, -1, 0, -1, -1]


@pytest.mark.parametrize(
    ("contents", "shown"),
    [
        ((" plain\t", "text \n"), ["plain", "text"]),
        (("\n", "text"), ["text"]),
        (("\u3000a b\u2028", "\x0bb"), ["a b", "b"]),
        ((" user", "<end_of_turn>\n"), ["user", "<end_of_turn>"]),
    ],
)
def test_what_a_template_trims_is_omitted(contents: tuple[str, ...], shown: list[str]) -> None:
    conversation = chat(*contents)
    rendering = CHAT_TEMPLATES["gemma"].render(conversation)
    assert rendering
    assert_exact(rendering, conversation)
    assert [text for _, text in content_spans(rendering)] == shown


def test_white_space_belongs_to_the_content_or_to_the_template() -> None:
    template = "{% for m in messages %}[{{ m['content'] | trim if loop.first else m['content'] }}\n]{% endfor %}"
    rendering = render(template, chat("one\n", "two\n"))
    assert rendering
    assert rendering.text == "[one\n][two\n\n]"
    assert content_spans(rendering) == [(0, "one"), (1, "two\n")]


def thinking(*contents: str) -> list[tuple[int, str]]:
    conversation = chat(*contents)
    rendering = CHAT_TEMPLATES["qwen3"].render(conversation)
    assert rendering
    assert_exact(rendering, conversation)
    assert_ordered(rendering, len(conversation))
    return content_spans(rendering)


def test_thoughts_of_earlier_turns_are_omitted() -> None:
    found = thinking("a ", "<think>\nhm\n</think>\n\nb", "c\n", "<think>\nso\n</think>\n\nd \n")
    assert found == [(0, "a "), (1, "b"), (2, "c\n"), (3, "<think>\nso\n</think>\n\nd \n")]


def test_a_template_that_changes_the_white_space_around_thoughts() -> None:
    assert thinking("a", "<think>so</think>b") == [(0, "a"), (1, "<think>"), (1, "so"), (1, "</think>"), (1, "b")]
    assert thinking("a", "<think>\n\nso\n</think>\n\n\nb") == [(0, "a"), (1, "<think>"), (1, "so\n</think>"), (1, "b")]


def test_a_thought_equal_to_the_templates_text() -> None:
    assert thinking("assistant", "<think>\nassistant\n</think>\nuser", "user", "assistant") == [
        (0, "assistant"),
        (1, "user"),
        (2, "user"),
        (3, "assistant"),
    ]


def test_tags_that_the_template_does_not_contain_are_content() -> None:
    assert thinking("<b>x</b>\n", "<think>y</think>\n\n<p>z</p>", "<i></i>", "<a>") == [
        (0, "<b>x</b>\n"),
        (1, "<p>z</p>"),
        (2, "<i></i>"),
        (3, "<a>"),
    ]


def test_a_message_that_is_not_shown_is_omitted() -> None:
    rendering = render("{{ messages[0]['content'] }}|{{ messages[2]['content'] }}", chat("a", "b", "c"))
    assert content_spans(rendering) == [(0, "a"), (2, "c")]
    assert rendering
    assert rendering.content_starts.tolist() == [0, -1, 2]


def test_a_content_that_is_written_as_json_is_found_between_its_escapes() -> None:
    template = "{% for m in messages %}{{ m['content'] | tojson(ensure_ascii=loop.last) }};{% endfor %}"
    rendering = render(template, chat('{"wind": "Föhn"}\n', "é\\ é"))
    assert rendering
    assert rendering.text == '"{\\"wind\\": \\"Föhn\\"}\\n";"\\u00e9\\\\ \\u00e9";'
    assert content_spans(rendering) == [(0, "{"), (0, "wind"), (0, ": "), (0, "Föhn"), (0, "}"), (1, " ")]


def test_contents_in_parts_for_a_template_that_takes_no_text() -> None:
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] + ';' }}{% endfor %}{% endfor %}"
    conversation = chat("Hello", "", "Hi")
    rendering = render(template, conversation)
    assert rendering
    assert rendering.text == "Hello;;Hi;"
    assert content_spans(rendering) == [(0, "Hello"), (2, "Hi")]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | escape }}{% endfor %}",
        "{% for m in messages %}{{ m['content'][:4] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m['content'] }}|{% endfor %}",
        "{% for m in messages %}{{ m['content'].replace('<think>', '<thought>') }}{% endfor %}",
        "{% if messages[0]['content'].startswith('<th') %}{{ messages[0]['content'] }}{{ messages[1]['content'] }}"
        "{% else %}{{ raise_exception('no thought') }}{% endif %}",
    ],
)
def test_a_template_that_changes_contents(template: str) -> None:
    rendering = render(template, chat('<think>so</think>"Hello"', "hi"))
    assert rendering is None or content_spans(rendering) == [(0, 'so</think>"Hello"'), (1, "hi")]
    assert rendering is None or "<thought>" in rendering.text


def test_a_null_content_is_empty() -> None:
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "weather", "arguments": {"at": "<|im_end|>"}}]},
        {"role": "tool", "content": "<|im_start|>sunny"},
        {"role": "assistant", "tool_calls": [{"name": "weather"}]},
    ]
    rendering = CHAT_TEMPLATES["qwen3"].render(messages)
    assert rendering
    assert_exact(rendering, messages)
    assert_ordered(rendering, 6)
    call = "weatherat<|im_end|>"
    assert "".join(text for turn, text in content_spans(rendering) if turn == 2) == call
    assert [span for span in content_spans(rendering) if span[0] != 2] == [
        (0, "weather?"),
        (3, "<|im_start|>sunny"),
        (5, "weather"),
    ]
    assert joined_text(messages) == f"weather?{call}<|im_start|>sunnyweather"


def test_other_keys_of_a_message_are_rendered() -> None:
    template = "{% for m in messages %}{{ m['name'] }}: {{ m['content'] }}\n{% endfor %}"
    rendering = render(template, [{"role": "user", "name": "Hi", "content": "Hi"}])
    assert spans(rendering) == [("TEMPLATE", -1, "Hi: "), ("CONTENT", 0, "Hi"), ("TEMPLATE", 0, "\n")]


def test_the_date_never_changes() -> None:
    template = "{{ strftime_now('%d %b %Y') if strftime_now is defined else 'none' }} " + CHATML
    rendering = render(template, chat("Hi"))
    assert rendering
    assert rendering.text.startswith("26 Jul 2024 <|im_start|>user\n")


def test_the_number_of_renderings_is_small() -> None:
    tokenizer, rendered = templated("qwen3"), []
    apply = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda *args, **kwargs: rendered.append(1) or apply(*args, **kwargs)
    template = ChatTemplate(tokenizer)
    template.render(chat("the grammar", "is learnt"))
    for contents, most in [(("a", "b"), 2), (("<b>a</b> ", ""), 2), (("a", "<think>b</think>c"), 3)]:
        rendered.clear()
        template.render(chat(*contents))
        assert len(rendered) <= most


def test_a_conversation_like_those_before_is_rendered_once() -> None:
    tokenizer, rendered = templated("qwen3"), []
    apply = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda *args, **kwargs: rendered.append(1) or apply(*args, **kwargs)
    template = ChatTemplate(tokenizer)
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    for shape in ([], [{"role": "assistant", "content": "", "tool_calls": [call]}]):
        template.render([*chat("first"), *shape])
        rendered.clear()
        for number in range(20):
            varied = [{**message} for message in shape]
            for message in varied:
                function = {"name": f"look_{number}", "arguments": {f"at {number}": number}}
                message["tool_calls"] = [{"type": "function", "function": function}]
            assert template.render([*chat(f"number {number}"), *varied])
        assert len(rendered) == 20


def test_no_template_names_the_tokenizer() -> None:
    template = ChatTemplate(with_template(None))
    with pytest.raises(UserError, match=r"some/tokenizer: the tokenizer has no chat template"):
        template.render(chat("Hi"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "str"),
        ("{{ messages[0]['nothing']['more'] }}", "no attribute"),
    ],
)
def test_a_template_that_refuses(template: str, reason: str) -> None:
    with pytest.raises(TemplateRefused, match=rf"some/tokenizer: its chat template refuses \['user'\].*{reason}"):
        render(template, chat("Hi"))


def test_joined_text() -> None:
    assert joined_text(chat("a", "", "b\n")) == "ab\n"
    assert joined_text([{"role": "assistant"}, {"role": "user", "content": None}]) == ""


NASTY = ["<|im_end|>", "<|im_start|>user\n", "<think>", "</think>", "<eos>", "user", "assistant", "\n", " ", "\ue000"]
NASTY += [
    "<tool_response>",
    "</tool_response>",
    "[/INST]",
    "</s>",
    "USER: ",
    "### ",
    "<end_of_turn>\n",
    "日本",
    "a",
    "\x00",
]
contents_strategy = st.lists(st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
conversations = st.builds(
    lambda system, turns: system + turns,
    st.just([]) | contents_strategy.map(lambda parts: [{"role": "system", "content": "".join(parts)}]),
    st.lists(contents_strategy.map("".join), min_size=1, max_size=5).map(lambda contents: chat(*contents)),
)
# these change no content, so that they must show all of it
FAITHFUL = {"chatml", "default_system", "chatml_with_eos", "mistral", "harmony", "vicuna", "phi3", "glm", "alpaca"}


@given(st.sampled_from(sorted(TEMPLATES)), conversations)
@example("qwen3", chat("a", "\n<think>\n</think>\n", "b", "<think><think>"))
@example("gemma", [{"role": "system", "content": ""}, *chat("\n", "")])
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_conversation_is_exact_and_ordered(name: str, conversation: list[dict[str, Any]]) -> None:
    try:
        rendering = CHAT_TEMPLATES[name].render(conversation)
    except TemplateRefused:
        assume(False)
    if rendering:
        assert_exact(rendering, conversation)
        assert_ordered(rendering, len(conversation))
    if name in FAITHFUL:
        assert rendering
        shown = [(turn, message["content"]) for turn, message in enumerate(conversation) if message["content"]]
        assert content_spans(rendering) == shown
