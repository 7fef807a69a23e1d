"""A side's chat template, and the arguments that it is rendered with."""

import math
import re
from datetime import date, time
from typing import Any

from pydantic import Field, field_validator

from alm_pipeline.config.fields.places import FileOrName
from alm_pipeline.config.frozen import Frozen

DATE_ARGUMENT = "strftime_now"
"""the function by which templates ask for today's date; as an argument, the date that it returns"""
NOT_ARGUMENTS = frozenset(
    {
        # what every rendering passes by itself
        *("messages", "add_generation_prompt", "continue_final_message"),
        *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
        # other parameters of transformers' apply_chat_template
        *(
            "conversation",
            "conversations",
            "chat_template",
            "tokenize",
            "padding",
            "truncation",
            "max_length",
            "return_tensors",
        ),
        *("return_dict", "return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs"),
        # names of Jinja
        *("and", "block", "caller", "dict", "elif", "else", "endif", "false", "False", "for", "if", "import", "in"),
        *("is", "loop", "namespace", "none", "None", "not", "or", "raise_exception", "range", "self", "set", "super"),
        *("true", "True"),
    }
)
"""Names that are not arguments of a template."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_DEPTH = 30
"""how deep a value may be nested: it is written into the template, which Python compiles"""


class TemplateConfig(Frozen):
    """A chat template with arguments."""

    template: FileOrName | None = Field(
        None,
        description="A file with a Jinja template, the name of a known template, or the name of one that the tokenizer "
        "has. Default: the tokenizer's own.",
    )
    arguments: dict[str, Any] = Field(
        {},
        description="Values that the template reads, by name: `{enable_thinking: false, tools: […], documents: […], "
        'date_string: "26 Jul 2024"}`. A row that has a value of its own (see `corpus.tools`) replaces them. '
        "`strftime_now` is the date of templates that ask for today's. They are written into the template, so the "
        "saved student has them, too.",
    )

    @field_validator("arguments", mode="before")
    @classmethod
    def _hold_json(cls, arguments: Any) -> Any:
        return _json_value(arguments, "arguments") if isinstance(arguments, dict) else arguments

    @field_validator("arguments")
    @classmethod
    def _have_names(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name, value in arguments.items():
            if not is_argument(name):
                raise ValueError(f"{name!r} is not the name of an argument that a template could read; remove it")
            if name == DATE_ARGUMENT and not isinstance(value, str):
                raise ValueError(f"{name} is a date as text, such as 2024-07-26, and not {value!r}")
            if name in ("tools", "documents") and not (value is None or is_list_of_mappings(value)):
                raise ValueError(f"{name} is a list of mappings, and not {value!r}")
        return arguments


def is_argument(name: str) -> bool:
    """Return whether a template could read an argument of this name."""
    return bool(_NAME.fullmatch(name)) and name not in NOT_ARGUMENTS


def is_list_of_mappings(value: Any) -> bool:
    """Return whether a JSON value is a list of mappings, as templates read tools and documents."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _json_value(value: Any, path: str, depth: int = 0) -> Any:
    """Return a value as JSON holds it: YAML reads 2024-07-26 as a date. Raises ValueError for any other value."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{path} is nested more than {_MAX_DEPTH} levels deep")
    match value:
        case str() if _is_unicode(value):
            return value
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case date() | time():
            return value.isoformat()
        case dict():
            if other := [key for key in value if not (isinstance(key, str) and _is_unicode(key))]:
                raise ValueError(f"{path} has the key {other[0]!r}, and JSON has only texts as keys")
            return {key: _json_value(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_json_value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise ValueError(f"{path} is {value!r}, which JSON has no form of")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
