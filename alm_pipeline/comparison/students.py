"""The students of a store side by side: their names, settings and results, from their manifests alone."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from alm_pipeline.evaluation.precision import why_too_few
from alm_pipeline.naming.differences import Settings, differences, value_text
from alm_pipeline.naming.names import names_apart
from storage.schemas import MANIFEST
from storage.upkeep.catalog import Catalog, CatalogEntry

Row = dict[str, Any]
"""A student: plain values by column."""

STUDENTS = "students"
_COMMON = ("teacher", "student.model", "student.tokenizer", "corpus.name", "train.steps")
"""settings that have columns of their own, and are never among `settings`"""


def student_entries(catalog: Catalog) -> list[CatalogEntry]:
    """Return the students of a store, in any state."""
    return [entry for entry in catalog.entries.values() if entry.kind == STUDENTS]


def student_names(entries: Sequence[CatalogEntry]) -> dict[str, str]:
    """Return a name for each complete student by its folder's name: chosen, or what makes it differ from the others."""
    return names_apart({entry.name: _configuration(entry.provenance) for entry in entries if entry.manifest})


def student_rows(catalog: Catalog) -> list[Row]:
    """Return a row for each student. What is not known, as of a student that is not complete, is None.

    `settings` has the fields of the configuration that are not the same for all, by dotted name.
    """
    entries = student_entries(catalog)
    complete = [entry for entry in entries if entry.manifest]
    names = student_names(entries)
    configs = [_configuration(entry.provenance) for entry in complete]
    differing = differences([config for config in configs if config]) if any(configs) else []
    settings = dict(zip((entry.name for entry in complete if _configuration(entry.provenance)), differing, strict=True))
    return [_row(entry, names.get(entry.name), settings.get(entry.name, {})) for entry in entries]


def _configuration(provenance: Mapping[str, Any]) -> Settings:
    """Return a recorded configuration; empty if there is none: no fingerprint covers it, so it may be anything."""
    recorded = provenance.get("configuration")
    return recorded if isinstance(recorded, Mapping) else {}


def _row(entry: CatalogEntry, name: str | None, settings: Settings) -> Row:
    config, results = _configuration(entry.provenance), _mapping(getattr(entry.manifest, "results", None))
    student, evaluation = _mapping(config.get("student")), _mapping(config.get("evaluation"))
    steps = _number(_mapping(config.get("train")).get("steps"))
    bits, errors = _mapping(results.get("held_out_bits_per_byte")), _mapping(results.get("held_out_standard_errors"))
    word_kl = _mapping(results.get("held_out_word_kl"))
    chosen = results.get("chosen_step")
    if chosen is None and evaluation.get("student", "last") == "last" and not evaluation.get("patience"):
        chosen = steps  # of an earlier version, which recorded none
    after, error = _number(bits.get("student_after")), _number(errors.get("student_after"))
    return {
        "name": name,
        "folder": entry.name,
        "url": entry.url,
        "state": str(entry.state),
        "teacher": config.get("teacher"),
        "student": student.get("model"),
        "tokenizer": student.get("tokenizer"),
        "corpus": _mapping(config.get("corpus")).get("name"),
        "steps": steps,
        "settings": {field: value for field, value in settings.items() if field not in _COMMON},
        "bits_teacher": _number(bits.get("teacher")),
        "bits_before": _number(bits.get("student_before")),
        "bits_after": after,
        "standard_error": error,
        "word_kl_before": _number(word_kl.get("student_before")),
        "word_kl_after": _number(word_kl.get("student_after")),
        "held_out_documents": _number(results.get("held_out_documents")),
        "chosen_step": _number(chosen),
        "finished": _time(entry) if entry.manifest else None,
        "bytes": entry.bytes,
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time(entry: CatalogEntry) -> str | None:
    """Return when the manifest, a student's last file, was written: ISO 8601, in UTC; None if the store can't say."""
    moment = entry.files[MANIFEST].modified if MANIFEST in entry.files else None
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def too_few(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each reason why students have too few held-out documents to be compared, naming them."""
    problems = (
        (row["name"], why_too_few(row["held_out_documents"], row["bits_after"], row["standard_error"]))
        for row in rows
        if row["held_out_documents"] is not None and row["bits_after"] is not None
    )
    students: dict[str, list[str]] = {}
    for name, problem in problems:
        students.setdefault(problem, []).append(str(name))
    return [f"{'; '.join(names)}: {problem}" for problem, names in students.items() if problem]


def short_text(value: Any) -> str:
    """Return a setting's value for a table: of a model or tokenizer, the last part of its path; nothing for None."""
    return "" if value is None else value_text(value)
