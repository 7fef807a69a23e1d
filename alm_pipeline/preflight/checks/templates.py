"""Checks of both sides' chat templates: that they read what they are given, and write tokens of their tokenizer."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateSyntaxError

from alm_pipeline.config.template import DATE_ARGUMENT
from alm_pipeline.corpus.examples import Example
from alm_pipeline.corpus.formats.layouts import ARGUMENTS_COLUMN, TOOLS_COLUMN
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.preflight.context import Context
from alm_pipeline.tokenization.templates.choice import TemplateChoice, known_templates, rendered_template
from alm_pipeline.tokenization.templates.syntax import names_read

_CONTROL = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>")


@dataclass(frozen=True)
class _Side:
    """A side's template, as it is chosen for the run."""

    name: str
    setting: str
    tokenizer: LoadedTokenizer
    choice: TemplateChoice | None

    def source(self, arguments: Mapping[str, Any] | None = None) -> str | None:
        """The template that conversations with these arguments are rendered with."""
        return rendered_template(self.tokenizer.template_without_arguments, arguments)


def _sides(context: Context) -> Iterator[_Side]:
    choice = context.teacher.template
    yield _Side("teacher", "teacher_template", context.teacher_tokenizer, choice)
    choice, tokenizer = context.inputs.student_template, context.student_tokenizer
    # what the run makes gets the template of the student's model
    made = tokenizer is None or tokenizer.name not in (context.source.name, context.config.student.tokenizer)
    yield _Side(
        "student", "student.template", context.templated_source if made or tokenizer is None else tokenizer, choice
    )


def arguments_are_read(context: Context) -> None:
    """Each side's template reads the arguments that it is given, and those that the first conversations bring."""
    chats = [example for example in context.sample.examples if example.messages is not None]
    for side in _sides(context):
        with suppress(TemplateSyntaxError):  # where conversations are rendered, this is an error
            _check_own_arguments(context, side)
            _check_rows_arguments(context, side, chats)


def _check_own_arguments(context: Context, side: _Side) -> None:
    source = side.source()
    if side.choice is None or source is None:
        return
    read = names_read(source) | ({DATE_ARGUMENT} if DATE_ARGUMENT in source else set())
    if unread := sorted(set(side.choice.arguments) - read):
        _warn(context, side, f"the {side.name}'s chat template does not read {_listed(unread)}", unread[0])


def _check_rows_arguments(context: Context, side: _Side, chats: Sequence[Example]) -> None:
    unread = Counter(
        name
        for chat in chats
        if (source := side.source(chat.arguments)) is not None
        for name in (chat.arguments or {}).keys() - names_read(source)
    )
    if unread:
        name, count = unread.most_common(1)[0]
        which = f"of {len(chats):,} conversations, {count:,} have {name!r}"
        _warn(context, side, f"{which}, which the {side.name}'s chat template does not read", name)


def _warn(context: Context, side: _Side, problem: str, argument: str) -> None:
    """Warn of an argument that a template does not read."""
    context.add(side.setting, problem, _fix(side, argument), severity="warning", value=side.tokenizer.name)


def _fix(side: _Side, argument: str) -> str:
    own = side.tokenizer.template_without_arguments
    own = own if isinstance(own, Mapping) else {}
    others = [name for name, source in own.items() if argument in names_read(source)]
    others += [name for name, file in known_templates().items() if argument in names_read(file.read_text("utf-8"))]
    if others:
        return f"set {side.setting} to a template that does, such as {others[0]}, or leave it out"
    return f"set {side.setting} to a file with a template that does, or leave it out"


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def turns_are_tokens(context: Context) -> None:
    """What a template that is named writes around turns are tokens of the tokenizer that it is used with."""
    if all(example.messages is None for example in context.sample.examples):
        return
    for side in _sides(context):
        source = side.source()
        if source is None or side.choice is None or side.choice.template is None:
            continue
        literals = dict.fromkeys(_CONTROL.findall(source))
        known = side.tokenizer.fast.get_vocab()
        if missing := [literal for literal in literals if literal not in known]:
            context.add(
                side.setting,
                f"the template writes {', '.join(missing[:4])}, which the {side.name}'s tokenizer has no token for: it "
                "is encoded as text, and generation does not end where a turn does",
                "name a template whose tokens the tokenizer has, such as plain",
                severity="warning",
            )


def rows_have_what_is_named(context: Context) -> None:
    """Conversations have the tools and arguments that the corpus's settings name: a column that rows may lack."""
    corpus, examples = context.config.texts, context.sample.examples
    found = {
        "tools": any("tools" in (example.arguments or {}) for example in examples),
        "template_arguments": any(set(example.arguments or {}) - {"tools"} for example in examples),
    }
    defaults = {"tools": TOOLS_COLUMN, "template_arguments": ARGUMENTS_COLUMN}
    for name, is_found in found.items():
        if examples and getattr(corpus, name) and not is_found:
            context.add(
                f"corpus.{name}",
                f"none of the first {len(examples):,} examples has any",
                f"name the column that has them, or leave it out (default: {defaults[name]}, where rows have it)",
                severity="warning",
            )
