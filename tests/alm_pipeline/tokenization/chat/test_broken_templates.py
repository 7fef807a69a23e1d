"""A chat template is a program, and may fail in every way that a program can: one sentence, or a count."""

import json
import re
from pathlib import Path

import pytest

from alm_pipeline.models.tokenizer import LoadedTokenizer, load_tokenizer
from alm_pipeline.new_tokenizer.byte_level import byte_level_tokenizer
from alm_pipeline.tokenization.chat.template import ChatTemplate, TemplateRefused
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Manifest
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.tokenization.chat.templates import with_template
from tests.corpora import conversations

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
FAILING = {
    "its own refusal": ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
    "a refusal without words": ("{{ raise_exception('') }}", "TemplateError"),
    "a division by zero": ("{{ messages | length / 0 }}", "division by zero"),
    "an endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "a missing field": ("{{ messages[0]['nothing']['more'] }}", "no attribute"),
    "a missing message": ("{{ messages[7]['role'] }}", "no element 7"),
    "a missing function": ("{{ show(messages) }}", "'show' is undefined"),
    "other types": ("{{ messages[0]['content'] + 1 }}", "str"),
    "a huge range": ("{% for k in range(10 ** 9) %}.{% endfor %}", "range"),
    "a huge text": ("{{ 'x' * 10 ** 18 }}", ""),
    "what the sandbox forbids": ("{{ ''.__class__.__mro__[1] }}", "unsafe"),
    "a wrong argument": ("{{ 'x'.split(5) }}", "str"),
    "a wrong index": ("{{ 'abc'.index('x') }}", "substring not found"),
    "a number that is none": ("{{ ('x' | int('y')) * 'z' }}", "non-int"),
    "a missing key": ("{{ '%(role)s' % {} }}", "KeyError: 'role'"),
    "an encoding": ("{{ '\udce9'.encode() }}", "surrogates"),
}
NOT_JINJA = {
    "an open block": ("{% for m in messages %}{{ m.content }}", "line 1"),
    "an open expression": ("\n{{ messages", "line 2"),
    "an unknown filter": ("{{ messages | shout }}", "No filter named 'shout'"),
    "an unknown test": ("{{ messages is loud }}", "No test named 'loud'"),
    "an unknown tag": ("\n\n{% shout %}", "line 3"),
    "a stray end": ("{% endfor %}", "endfor"),
    "half of it": (tiny.CHATML[: len(tiny.CHATML) // 2], "line "),
}


@pytest.mark.bad_input
@pytest.mark.parametrize(("template", "sentence"), FAILING.values(), ids=FAILING)
def test_a_template_that_fails_refuses_the_conversation(template: str, sentence: str) -> None:
    with pytest.raises(TemplateRefused) as caught:
        ChatTemplate(with_template(template)).render(CHAT)
    message = str(caught.value)
    assert message.startswith("some/tokenizer: its chat template refuses ['user', 'assistant']: ")
    assert sentence in message
    assert "\n" not in message


@pytest.mark.bad_input
@pytest.mark.parametrize(("template", "where"), NOT_JINJA.values(), ids=NOT_JINJA)
def test_a_template_that_is_not_jinja_is_not_a_matter_of_the_conversation(template: str, where: str) -> None:
    for use in (ChatTemplate(with_template(template)).render, lambda _: byte_level_tokenizer(with_template(template))):
        with pytest.raises(UserError, match="its chat template is not valid Jinja") as caught:
            use(CHAT)
        assert not isinstance(caught.value, TemplateRefused)
        assert where in str(caught.value)


@pytest.mark.parametrize("template", [template for template, _ in FAILING.values()], ids=FAILING)
def test_a_byte_level_tokenizer_can_be_made_of_one_whose_template_refuses(template: str) -> None:
    assert byte_level_tokenizer(with_template(template)).chat_template == template


@pytest.mark.bad_input
@pytest.mark.parametrize("template", [5, True, {"role": "user"}, [{"name": "default", "template": 5}]])
def test_a_template_that_is_not_a_text_is_refused(template: object, tmp_path: Path) -> None:
    tiny.save(tmp_path, tiny.tiny_llama(400), tiny.byte_level_tokenizer())
    (tmp_path / "chat_template.jinja").unlink()
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: ")):
        ChatTemplate(load_tokenizer(str(tmp_path))).render(CHAT)


def tokens_of(template: str, folder: Path, chats: list[list[dict[str, str]]]) -> Manifest:
    name = tiny.save(folder / "model", tiny.tiny_llama(400), tiny.byte_level_tokenizer())
    (folder / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    examples, tokenizer = conversations(folder, chats), LoadedTokenizer(name)
    tokens = tokens_dataset(examples, tokenizer, None)
    tokenize(examples, tokens, tokenizer, None)
    return tokens.complete_manifest()


OTHERS = [{"role": "system", "content": "Be kind."}, *CHAT]
ONLY_USERS = "{% if messages[0].role != 'user' %}{{ 1 / 0 }}{% endif %}" + tiny.CHATML


def test_what_a_template_refuses_is_counted(tmp_path: Path) -> None:
    manifest = tokens_of(ONLY_USERS, tmp_path, [CHAT, OTHERS, CHAT])
    assert manifest.dropped == {"template_refuses": 1}


@pytest.mark.bad_input
def test_a_template_that_refuses_every_conversation_ends_the_stage(tmp_path: Path) -> None:
    expected = r"refuses \['system', 'user', 'assistant'\]: division by zero; it refuses all 2 conversations of .*: fix"
    with pytest.raises(UserError, match=expected):
        tokens_of(ONLY_USERS, tmp_path, [OTHERS, OTHERS])


@pytest.mark.bad_input
def test_a_template_that_is_not_jinja_ends_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not valid Jinja"):
        tokens_of("{% for", tmp_path, [CHAT])
