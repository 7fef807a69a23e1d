"""Where the contents stand in a rendered conversation."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.chat import joined_contents, render
from storage.errors import UserError
from tests.tiny import byte_level_tokenizer

CHATML_TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
CHATML = "{% for m in messages %}" + CHATML_TURN + "{% endfor %}"
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = template
    tokenizer.name_or_path = "some/tokenizer"
    return tokenizer


def chat(*contents: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def content_bytes(text: str, content_before: np.ndarray) -> bytes:
    return bytes(byte for byte, inside in zip(text.encode(), np.diff(content_before), strict=True) if inside)


CONTENTS = [
    ("Hello", "Hi"),
    ("user", "assistant"),
    ("user", "user", "user"),
    ("same", "same"),
    ("", "answer"),
    ("question", ""),
    ("<|im_start|>user\nHello<|im_end|>\n", "<|im_end|>"),
    ("{{ m['content'] }}", "{% endfor %}"),
    ("日本👩‍👩‍👧", "e\u0301\x00\r\n"),
    ("\ue0000\ue001", "\ue000"),
    (" leading", "trailing \n"),
]


@pytest.mark.parametrize("contents", CONTENTS)
def test_contents_are_found(contents: tuple[str, ...]) -> None:
    rendering = render(with_template(CHATML), chat(*contents))
    assert rendering
    assert rendering.text == "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in chat(*contents)
    )
    before = rendering.content_before
    assert len(before) == len(rendering.text.encode()) + 1
    assert before[0] == 0
    assert before[-1] == len("".join(contents).encode())
    assert content_bytes(rendering.text, before) == "".join(contents).encode()


def test_content_before_where_the_content_is_a_role() -> None:
    rendering = render(with_template(CHATML), chat("user"))
    assert rendering
    start = len("<|im_start|>user\n")
    steps = np.flatnonzero(np.diff(rendering.content_before))
    assert steps.tolist() == list(range(start, start + len("user")))


def test_a_default_system_prompt_is_scaffold() -> None:
    rendering = render(with_template(DEFAULT_SYSTEM + CHATML), chat("Be kind.", "Yes"))
    assert rendering
    assert rendering.text.count("Be kind.") == 2
    assert np.flatnonzero(np.diff(rendering.content_before))[0] == rendering.text.rindex("Be kind.")


def test_a_template_that_trims(sentencepiece: PreTrainedTokenizerFast) -> None:
    assert render(sentencepiece, chat("plain", "text"))
    assert render(sentencepiece, chat("plain", "text \n")) is None


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{{ messages[0]['content'] }}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m['content'] }}|{% endfor %}",
        "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}{% endfor %}",
        "{% if messages[0]['content'].startswith('<th') %}{{ messages[0]['content'] }}{{ messages[1]['content'] }}"
        "{% else %}{{ raise_exception('no thought') }}{% endif %}",
    ],
)
def test_a_template_that_changes_contents(template: str) -> None:
    assert render(with_template(template), chat("<think>so</think>Hello", "hi")) is None


def test_other_keys_of_a_message_are_rendered() -> None:
    template = "{% for m in messages %}{{ m['name'] }}: {{ m['content'] }}\n{% endfor %}"
    rendering = render(with_template(template), [{"role": "user", "name": "Ann", "content": "Hi"}])
    assert rendering
    assert rendering.text == "Ann: Hi\n"


def test_the_date_never_changes() -> None:
    template = "{{ strftime_now('%d %b %Y') if strftime_now is defined else 'none' }} " + CHATML
    rendering = render(with_template(template), chat("Hi"))
    assert rendering
    assert rendering.text.startswith("26 Jul 2024 <|im_start|>user\n")


def test_no_template_names_the_tokenizer() -> None:
    with pytest.raises(UserError, match=r"some/tokenizer: the tokenizer has no chat template"):
        render(with_template(None), chat("Hi"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "str"),
        ("{{ messages[0]['nothing']['more'] }}", "no attribute"),
    ],
)
def test_a_template_that_refuses(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"some/tokenizer: its chat template refuses \['user'\].*{reason}"):
        render(with_template(template), chat("Hi"))


def test_joined_contents() -> None:
    assert joined_contents(chat("a", "", "b\n")) == "ab\n"
