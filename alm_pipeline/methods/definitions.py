"""A user's own methods and domains, from a YAML file or a flow's parameter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from alm_pipeline.config import CorpusConfig
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.config.fields.places import Place, absolute, place_in, with_absolute_places
from alm_pipeline.config.run import read_yaml
from alm_pipeline.methods.measuring import ComparedTexts
from alm_pipeline.methods.registry import Settings, check_variants
from alm_pipeline.recipes.overrides import corpus_at, setting_annotations
from storage.errors import UserError

_SECTIONS = ("methods", "domains")
_EXAMPLE = "write `methods: {NAME: {FIELD: VALUE}}`, `domains: {NAME: {a corpus's fields}}`, or both"


def read_definitions(file: Path) -> Any:
    """Return the content of a YAML file. Raises UserError if it can't be read, or has a name twice."""
    return read_yaml(file, _EXAMPLE)


class Definitions(NamedTuple):
    """What a comparison has beside the built-in methods and the run's own corpus."""

    methods: Mapping[str, Settings] = {}
    """settings by dotted name, by method"""
    domains: tuple[ComparedTexts, ...] = ()

    @classmethod
    def parse(cls, content: Any, where: str) -> "Definitions":
        """Check plain values. Raises UserError naming `where` and what is wrong."""
        if not isinstance(content, dict) or not content or set(content) - set(_SECTIONS):
            raise UserError(f"{where}: has not just the sections {' and '.join(_SECTIONS)}: {_EXAMPLE}")
        sections = {name: content.get(name) or {} for name in _SECTIONS}
        if wrong := [name for name, section in sections.items() if not isinstance(section, dict)]:
            raise UserError(f"{where}: {wrong[0]}: is not a mapping of names: {_EXAMPLE}")
        domains = tuple(_domain(name, fields, where) for name, fields in sections["domains"].items())
        return cls(check_variants(sections["methods"], where), domains)


def with_absolute_definitions(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return definitions as plain values with absolute paths. Raises UserError as `Definitions.parse` does."""
    own = Definitions.parse(content, "definitions")
    methods = {
        name: {field: absolute(value, _place(field)) for field, value in settings.items()}
        for name, settings in own.methods.items()
    }
    corpora = {texts.domain: with_absolute_places(texts.corpus) for texts in own.domains}
    domains = {name: corpus.model_dump(mode="json", exclude_unset=True) for name, corpus in corpora.items()}
    return {"methods": methods, "domains": domains}


def _place(field: str) -> Place | None:
    return next(filter(None, map(place_in, setting_annotations(field))), None)


def _domain(name: Any, fields: Any, where: str) -> ComparedTexts:
    if not isinstance(fields, dict):
        raise UserError(f"{where}: domains: {name}: is not a mapping of a corpus's fields: {_EXAMPLE}")
    try:
        corpus = CorpusConfig.model_validate({"name": str(name), **fields})
    except ValidationError as error:
        raise UserError(f"{where}: domains: {name}:\n{wrong_fields(error, CorpusConfig)}") from error
    return ComparedTexts(str(name), corpus)


def domain_at(name: str, url: str, examples: int) -> ComparedTexts:
    """Return the first documents of files as a domain. Raises UserError with what is wrong."""
    return ComparedTexts(name, corpus_at(url, {"name": name, "max_examples": examples}))
