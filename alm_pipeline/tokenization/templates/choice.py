"""The template that a configuration gives a side: found by name or in a file, with its arguments written into it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.config.fields.spelling import nearest
from alm_pipeline.config.template import TemplateConfig
from alm_pipeline.corpus.formats.tools import TOOLS
from alm_pipeline.tokenization.templates.baking import bake
from alm_pipeline.tokenization.templates.syntax import check_syntax
from storage.errors import UserError, user_error
from storage.urls import read_bytes

Templates = str | Mapping[str, str] | None
"""What a tokenizer has: one template, several by name, or none."""

_DEFAULT, TOOL_USE = "default", "tool_use"
_ENDING = ".jinja"


def rendered_template(templates: Templates, arguments: Mapping[str, Any] | None = None) -> str | None:
    """Return the template that a conversation with these arguments is rendered with; None if there is none.

    As transformers does, one that is called `tool_use` is taken where there are tools.
    """
    if not isinstance(templates, Mapping):
        return templates
    has_tools = bool(arguments and arguments.get(TOOLS))
    return templates[TOOL_USE] if has_tools and TOOL_USE in templates else templates.get(_DEFAULT)


def known_templates() -> dict[str, Path]:
    """Return the files of the templates that come with this package, by name."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob(f"*{_ENDING}"))}


@dataclass(frozen=True)
class TemplateChoice:
    """What a setting asks for."""

    setting: str
    """the setting's dotted name, for errors"""
    template: str | None = None
    """a file, or a name; None for the tokenizer's own"""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_option(cls, template: str | None, arguments: str | None) -> "TemplateChoice | None":
        """Return the choice of the options `--template` and `--template-arguments`, which is YAML or JSON.

        Raises UserError for arguments that are not a mapping that a template could read.
        """
        with user_error(
            "--template-arguments: can't be read as YAML or JSON", "write it as '{enable_thinking: false}'"
        ):
            parsed = yaml.safe_load(arguments) if arguments is not None else None
        try:
            config = TemplateConfig(template=template, arguments={} if parsed is None else parsed)
        except ValidationError as error:
            raise UserError(f"--template-arguments:\n{wrong_fields(error, TemplateConfig)}") from error
        return cls.of("--template", config)

    @classmethod
    def of(cls, setting: str, value: str | TemplateConfig | None) -> "TemplateChoice | None":
        """Return the choice of a setting's value; None if it asks for nothing."""
        if isinstance(value, str):
            return cls(setting, value)
        if value is None or (value.template is None and not value.arguments):
            return None
        return cls(setting, value.template, value.arguments)

    def applied(self, own: Templates, tokenizer: str) -> Templates:
        """Return the template to use in place of a tokenizer's own; None if it has none, and none is named.

        Raises UserError, naming the setting, if the template does not exist or is not valid.
        """
        if self.template is not None:
            source, origin = self._named(own, tokenizer)
            check_syntax(source, f"{self.setting}: {origin}")
            return self._baked(source)
        if isinstance(own, Mapping):
            return {name: self._baked(source) for name, source in own.items()}
        return None if own is None else self._baked(own)

    def _baked(self, source: str) -> str:
        baked = bake(source, self.arguments)
        # where the template itself is valid, as everywhere else
        if self.arguments and baked != source:
            check_syntax(bake("", self.arguments), f"{self.setting}.arguments")
        return baked

    def file_content(self) -> bytes | None:
        """Return the content of the file that is named; None if there is none. Raises UserError for a folder."""
        assert self.template is not None
        if not self.template.strip():
            return None
        if "://" not in self.template and Path(self.template).is_dir():
            raise UserError(
                f"{self.setting}: {self.template} is a folder: name a file, such as the {Path('chat_template.jinja')} "
                "of a tokenizer"
            )
        with user_error(f"{self.setting}: {self.template} can't be read", "name a file with a Jinja template"):
            return read_bytes(self.template)

    def _named(self, own: Templates, tokenizer: str) -> tuple[str, str]:
        """Return the source that is named, and what to call it."""
        assert self.template is not None
        named = dict(own) if isinstance(own, Mapping) else {_DEFAULT: own} if own is not None else {}
        if self.template in named:
            return named[self.template], f"the template {self.template} of {tokenizer}"
        known = known_templates()
        if self.template in known:
            return known[self.template].read_text(encoding="utf-8"), f"the known template {self.template}"
        content = self.file_content()
        if content is None:
            raise UserError(self._unknown([*named, *known], list(named), tokenizer))
        return self._decoded(content), self.template

    def _decoded(self, content: bytes) -> str:
        try:
            source = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.setting}: {self.template} is not a text in UTF-8: name a file with a Jinja template"
            ) from error
        if not source.strip():
            raise UserError(f"{self.setting}: {self.template} is empty: name a file with a Jinja template")
        return source

    def _unknown(self, names: list[str], own: list[str], tokenizer: str) -> str:
        near = nearest(self.template or "", names)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        has = f"{tokenizer} has {', '.join(own)}" if own else f"{tokenizer} has none"
        return (
            f"{self.setting}: {self.template!r} is neither a file nor the name of a template{meant} Known names are "
            f"{', '.join(known_templates())}, and {has}: name one of these, or a file"
        ).replace("template Known", "template. Known")
