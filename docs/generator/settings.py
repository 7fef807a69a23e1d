"""The page of settings: every field of the configuration, from the pydantic models' own descriptions.

A setting is a dotted path (`train.steps`), as `--set` and a flow's `settings` take it. A field whose value is a model,
or one of several, gets a table of its own; a setting without a description fails `tests/test_docs.py`.
"""

import inspect

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.fields.settings import Section, Setting, sections
from alm_pipeline.config.fields.values import default_in_words, values_in_words
from alm_pipeline.ensemble.config import EnsembleConfig
from alm_pipeline.hypernetwork.settings import HypernetConfig
from alm_pipeline.recipes.overrides import FIELDS, Overrides
from docs.generator.markdown import anchor, code, escape, table

_INTRODUCTION = """# Settings

Every setting of a run. In a YAML file they are nested. `--set train.seed=1` on the command line,
`-p 'settings={"train.seed": 1}'` in a Prefect run and `override(config, Overrides(settings={"train.seed": 1}))` in
Python name one by its dotted path. `alm show transfer` prints a complete configuration with these texts as comments,
and `alm init` writes one for your own models. A misspelled setting is refused, and the nearest one is named.

This page is generated from the models in `alm_pipeline.config`.
"""
_OVERRIDES = """## Overrides

Values that often change from run to run are options of `alm run`, parameters of the flow `alm`, and fields of
`Overrides` in Python.
"""
_ENSEMBLE = """
## An ensemble's file { #ensemble }

A file of its own, which `alm generate`, `alm evaluate` and `alm compare` read: see [ensembles](../how-to/ensembles.md).
"""
_HYPERNET = """
## A hypernetwork's file { #hypernetwork }

A file of its own, which `alm hypernet` reads: see [hypernetworks](../how-to/hypernetwork.md). `corpus`, `score` and
`objective` are those of a run.
"""


def page() -> str:
    """The page, in Markdown."""
    run = "\n".join(map(_section, sections(AlmConfig)))
    ensemble = "\n".join(_table(section) for section in sections(EnsembleConfig))
    hypernet = "\n".join(map(_hypernet_section, _own_sections()))
    ensembles = f"{_ENSEMBLE}\n{ensemble}"
    return f"{_INTRODUCTION}\n{_OVERRIDES}\n{_overrides()}\n{run}\n{ensembles}\n{_HYPERNET}\n{hypernet}"


def _own_sections() -> list[Section]:
    """The sections of a hypernetwork's configuration that are not those of a run."""
    shared = ("corpus", "score", "objective")
    return [section for section in sections(HypernetConfig) if not section.path.startswith(shared)]


def _hypernet_section(section: Section) -> str:
    title = f"hypernetwork: {section.path}" if section.path else "The whole hypernetwork"
    purpose = escape(inspect.cleandoc(section.model.__doc__ or ""))
    return f"### {title}\n\n{purpose}\n\n{_table(section, 'hypernet.')}"


def _overrides() -> str:
    rows = [
        (code(f"--{name.replace('_', '-')}"), code(name), code(FIELDS[name]), escape(field.description or ""))
        for name, field in Overrides.model_fields.items()
        if name in FIELDS
    ]
    return table(("option", "parameter", "setting", "meaning"), rows)


def _section(section: Section) -> str:
    kind = section.model.model_fields.get("kind")
    name = section.path or "The whole run"
    title = f"{name}, kind {code(kind.default)}" if kind else name
    level = "#" * (2 + section.path.count("."))
    return f"{level} {title}\n\n{escape(inspect.cleandoc(section.model.__doc__ or ''))}\n\n{_table(section)}"


def _table(section: Section, prefix: str = "") -> str:
    rows = [
        (
            anchor(prefix + setting.path) + code(setting.path),
            _default(setting),
            values(setting),
            escape(setting.field.description or ""),
        )
        for setting in section.settings
    ]
    return table(("setting", "default", "values", "meaning"), rows)


def values(setting: Setting) -> str:
    """The values that a setting takes, in words."""
    return values_in_words(setting.field.annotation, setting.field.metadata, code, "section (see below)")


def _default(setting: Setting) -> str:
    return "*required*" if setting.field.is_required() else default_in_words(setting.field, code)
