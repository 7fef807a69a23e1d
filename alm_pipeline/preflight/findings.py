"""What a preflight finds: a finding per problem, with the field, its value, the problem and the fix."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel

from alm_pipeline.config import AlmConfig, SourceConfig
from storage.errors import UserError
from storage.printed.inert import visible

Severity = Literal["error", "warning"]
_FIELD = re.compile(
    r"\bteacher_template\b|\b(?:corpus|student|score|objective|train|evaluation|log|publish)(?:\.[a-z_]+)+"
)
_LONGEST_VALUE = 120


@dataclass(frozen=True)
class Finding:
    """A problem of a configuration on this machine. Its texts are inert and hold no secrets."""

    field: str
    """the dotted name of the field that it is about, or `storage`"""
    value: str
    """the field's value; '' if it is not set"""
    problem: str
    fix: str
    sentence: str
    """the problem and its fix"""
    severity: Severity = "error"
    """an error stops a run before its first stage; a warning does not"""

    @property
    def sentence_with_field(self) -> str:
        return self.sentence if self.field in self.sentence else f"{self.field}: {self.sentence}"

    @property
    def text(self) -> str:
        """The field with its value, and the sentence below it."""
        return f"{self.field}: {self.value or 'not set'}\n  {self.sentence}"


def finding(
    config: AlmConfig, field: str, problem: str, fix: str, severity: Severity = "error", value: str | None = None
) -> Finding:
    """Return a finding about a field; its value is that of the configuration unless another is given."""
    shown = value_of(config, field) if value is None else value
    return _finding(field, shown, problem, fix, f"{problem}: {fix}", severity)


def finding_of(
    error: Exception, config: AlmConfig, field: str, severity: Severity = "error", value: str | None = None
) -> Finding:
    """Return the finding of an error about a field; its value is that of the configuration unless another is given."""
    sentence = str(error)
    shown = value_of(config, field) if value is None else value
    return _finding(field, shown, *split(sentence), sentence, severity)


def _finding(field: str, value: str, problem: str, fix: str, sentence: str, severity: Severity) -> Finding:
    return Finding(field, visible(value), visible(problem), visible(fix), visible(sentence), severity)


def of_source(found: Finding, source: SourceConfig) -> Finding:
    """Return a finding about a part of a mixture under the field of its source: `corpus.NAME.text`."""
    field = found.field
    if field == "corpus" or field.startswith("corpus."):
        field = f"corpus.{source.name}{field.removeprefix('corpus')}"
    elif (field == "teacher" and source.teacher) or (field == "teacher_template" and source.teacher_template):
        field = f"corpus.{source.name}.{field}"
    if field == found.field:
        return found
    sentence = _OF_CORPUS.sub(f"corpus.{source.name}.", found.sentence)
    fix = _OF_CORPUS.sub(f"corpus.{source.name}.", found.fix)
    return replace(found, field=field, sentence=sentence, fix=fix)


_OF_CORPUS = re.compile(r"\bcorpus\.(?=[a-z_])")


def named_field(sentence: str, config: AlmConfig) -> str | None:
    """Return the first field of the configuration that a sentence names; None if it names none."""
    return next((name for name in _FIELD.findall(sentence) if _exists(config, name)), None)


def value_of(config: AlmConfig, field: str) -> str:
    """Return a field's value as a short text; '' for one that is not set, or that the configuration does not have."""
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name, None)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    text = "" if value is None else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _exists(config: AlmConfig, field: str) -> bool:
    value: Any = config
    for name in field.split("."):
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def split(sentence: str) -> tuple[str, str]:
    """Return the problem and the fix of an error's sentence, which ends with its fix after a colon or semicolon."""
    place = max(sentence.rfind(sign) for sign in (": ", "; "))
    return (sentence, "") if place < 0 else (sentence[:place], sentence[place + 2 :])


def not_ready(findings: Sequence[Finding]) -> UserError:
    """Return one error with all errors among the findings."""
    errors = [item for item in findings if item.severity == "error"]
    if len(errors) > 1:
        listed = "\n".join(f"- {item.text}" for item in errors)
        return UserError(f"{len(errors)} problems would stop this run:\n{listed}")
    (only,) = errors
    return UserError(only.sentence_with_field)
