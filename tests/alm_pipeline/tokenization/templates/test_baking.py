"""Arguments in a template's source: the same as passed, except that a rendering's own come first."""

import json
import os
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from alm_pipeline.tokenization.templates.baking import bake, date_macro, jinja_literal
from alm_pipeline.tokenization.templates.syntax import names_read
from tests.families import FAMILIES, messages_for

MESSAGES = [{"role": "user", "content": "Hi"}]
HARD = "é\U0001f600\u2028\x00\"\\'{%}{{x}}{# #}\n\r\t\x7f\ud7ff\ufffe%}-"
VALUES = [
    *(None, True, False, 0, -5, 10**30, 0.1, 1e-7, 1e300, -2.5, "", HARD, [], {}, [None, [True]]),
    {HARD: {"x": {"y": [1, {"z": {}}]}}},
    {"type": "function", "function": {"name": "look", "parameters": {"default": None, "enum": ["a", None]}}},
]


def rendered(template: str, conversation: Any = MESSAGES, **arguments: Any) -> str:
    texts_and_spans = render_jinja_template([conversation], chat_template=template, **arguments)
    return str(texts_and_spans[0][0])


@pytest.mark.parametrize("value", VALUES, ids=lambda value: json.dumps(value)[:30])
def test_a_value_that_is_baked_is_the_value_that_is_passed(value: Any) -> None:
    template = "{{ value | tojson }}"
    baked = rendered(bake(template, {"value": value}))
    assert baked == rendered(template, value=value)
    assert json.loads(baked) == value
    assert rendered("{{ " + jinja_literal(value) + " | tojson }}") == baked


@pytest.mark.parametrize(
    "template", ["{{ x }}\n", "\n\n{{ x }}", "   {% if x %}\n  y\n{% endif %}\n", "\t{#- c #}{{ x }}"]
)
def test_the_template_writes_what_it_did(template: str) -> None:
    assert rendered(bake(template, {"x": 1})) == rendered(template, x=1)
    assert bake(template, {}) == template


@pytest.mark.parametrize(
    "read", ["{{ x }}", "{% for k in [1] %}{{ x }}{% endfor %}", "{% macro m() %}{{ x }}{% endmacro %}{{ m() }}"]
)
def test_a_rendering_has_its_own_first(read: str) -> None:
    template = bake(read, {"x": "run"})
    assert rendered(template) == "run"
    assert rendered(template, x="row") == "row"
    assert rendered(template, x=None) == "run"
    assert rendered(template, x=False) == "False"


def test_transformers_passes_tools_and_documents_always() -> None:
    template = "{{ tools | tojson }}{{ documents | tojson }}"
    tool, document = {"name": "look"}, {"title": "t", "text": "x"}
    baked = bake(template, {"tools": [tool], "documents": [document]})
    assert rendered(baked) == rendered(template, tools=[{"type": "function", "function": tool}], documents=[document])
    assert rendered(baked, tools=[{"x": 1}]) == rendered(template, tools=[{"x": 1}], documents=[document])


def test_templates_with_a_default_of_their_own_take_the_argument() -> None:
    template = "{% if not day is defined %}{% set day = 'then' %}{% endif %}{{ day }}"
    assert rendered(template) == "then"
    assert rendered(bake(template, {"day": "now"})) == "now"


@pytest.mark.parametrize(
    ("day", "format_", "written"),
    [
        (None, "%d %b %Y", "26 Jul 2024"),
        (None, "%Y-%m-%d", "2024-07-26"),
        (None, "%A, %B %-d, %y %H:%M", "Friday, July 26, 24 00:00"),
        ("2026-11-29", "%d %B %Y", "29 November 2026"),
        ("2026-11-29T18:05:00", "%H:%M", "18:05"),
        ('the "first" {{ day }}', "%d %B %Y", 'the "first" {{ day }}'),
    ],
)
def test_a_date_is_written_as_the_template_asks(day: str | None, format_: str, written: str) -> None:
    template = f"{{{{ strftime_now('{format_}') }}}}"
    assert rendered(f"{date_macro(day)}\n{template}") == written
    if day is not None:
        # after the date that every rendering has
        assert rendered(f"{date_macro()}\n{bake(template, {'strftime_now': day})}") == written


PARAMETERS = {"type": "object", "properties": {"town": {"type": "string", "description": HARD}}, "required": ["town"]}
ARGUMENTS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "look", "description": HARD, "parameters": PARAMETERS}}],
    "documents": [{"title": "Bern", "text": HARD, "doc_id": 1}],
    "enable_thinking": False,
    "thinking": True,
    "reasoning_effort": "high",
    "date_string": "1 Jan 2020",
}


def test_published_templates_write_the_same_with_arguments_in_them() -> None:
    """A third of them, or all with ALM_SOAK."""
    read: set[str] = set()
    for name in list(FAMILIES)[:: 1 if "ALM_SOAK" in os.environ else 3]:
        family = FAMILIES[name]
        given = {"conversation": messages_for(family, MESSAGES), "bos_token": "<s>", "eos_token": "</s>"}
        read |= ARGUMENTS.keys() & names_read(family.source)
        assert rendered(bake(family.source, ARGUMENTS), **given) == rendered(family.source, **given, **ARGUMENTS), name
    assert read >= ARGUMENTS.keys() - {"thinking"}
