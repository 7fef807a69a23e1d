"""Describes each dataset of a lineage in a few lines, with names instead of the hashes in its identity."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from storage.errors import UserError, user_error
from storage.schemas import MANIFEST
from storage.upkeep.catalog import CatalogEntry, LineageNode

_NO_PART_OF_SCORES = ("served", "compile", "batch_tokens", "devices", "device_map")
"""how they were computed, which changes them only by rounding"""
ConfigValues = Mapping[str, Any]
"""A configuration as a manifest holds it: plain values, perhaps of an older version."""


def highlights(node: LineageNode) -> list[str]:
    """Return lines about what the dataset was made with, according to its manifest; or why it can't be read there."""
    if node.entry is None or node.entry.manifest is None:
        return []
    try:
        with _reading_notes(node.entry):
            config = node.entry.provenance.get("configuration") or {}
            lines = SETTINGS_OF_KIND[node.entry.kind](node.role.rpartition(": ")[2], config) if config else []
            return [*lines, *_results(node.entry)]
    except UserError as error:
        return [str(error)]


def origin(entry: CatalogEntry | None) -> str:
    """Return the versions and the commit that made an entry; empty if its manifest does not record them."""
    if entry is None:
        return ""
    try:
        with _reading_notes(entry):
            return _versions_and_commit(entry.provenance)
    except UserError as error:
        return str(error)


def _reading_notes(entry: CatalogEntry) -> AbstractContextManager[None]:
    # no fingerprint covers the provenance and the results, so they may hold anything
    return user_error(
        f"{entry.file(MANIFEST)}: its notes can't be read", f"`alm repair --checksums {entry.url}` looks at the data"
    )


def _versions_and_commit(provenance: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    commit = f"commit {provenance['commit'][:12]}" if provenance.get("commit") else ""
    changed = ", with uncommitted changes" if provenance.get("uncommitted_changes") else ""
    return "; ".join(part for part in (f"{commit}{changed}", versions) if part)


def _corpus_lines(_role: str, config: ConfigValues) -> list[str]:
    return [f"corpus: {_values(config.get('corpus', {}).get('source', {}))}"]


def _filter_lines(_role: str, config: ConfigValues) -> list[str]:
    corpus = config.get("corpus", {})
    parts = {name: corpus.get(name) for name in ("deduplicate", "decontaminate")}
    return [*_corpus_lines(_role, config), *(f"{name}: {_values(part)}" for name, part in parts.items() if part)]


def _tokens_lines(role: str, config: ConfigValues) -> list[str]:
    return [f"tokenizer: {name}"] if (name := _tokenizer(role, config)) else []


def _tokenizer_lines(_role: str, config: ConfigValues) -> list[str]:
    student = config.get("student", {})
    vocabulary = student.get("tokenizer")
    how = "vocabulary of" if isinstance(vocabulary, str) else "trained"
    return [f"{how}: {_values(vocabulary)}", f"special tokens of: {student.get('model')}"]


def _scores_lines(_role: str, config: ConfigValues) -> list[str]:
    score = {name: value for name, value in config.get("score", {}).items() if name not in _NO_PART_OF_SCORES}
    return [f"teacher: {config.get('teacher')}, {_values(score)}"]


def _student_lines(_role: str, config: ConfigValues) -> list[str]:
    settings = [f"{part}: {_values(config.get(part, {}))}" for part in ("objective", "train")]
    sources = config.get("corpus")
    weights = (
        [f"{source.get('name')} {source.get('weight')}" for source in sources] if isinstance(sources, list) else []
    )
    mixture = [f"mixture, by weight: {', '.join(weights)}"] if weights else []
    return [f"from: {config.get('student', {}).get('model')}", *mixture, *settings]


def _question_lines(_role: str, config: ConfigValues) -> list[str]:
    return [f"questions of: {config.get('questions')}"]


def _place_lines(_role: str, config: ConfigValues) -> list[str]:
    return [f"places of: {config.get('places')}"]


def _choice_lines(_role: str, config: ConfigValues) -> list[str]:
    return [f"scored by: {config.get('model')}"]


def _demonstration_lines(_role: str, config: ConfigValues) -> list[str]:
    return [f"from: {_values(config.get('demonstrations', {}))}"]


def _activation_lines(_role: str, config: ConfigValues) -> list[str]:
    return [f"model: {config.get('model')}, {_values(config.get('activations', {}))}"]


def _projection_lines(_role: str, config: ConfigValues) -> list[str]:
    return [f"edit: {_values(config.get('edit', {}))}"]


def _hypernetwork_lines(_role: str, config: ConfigValues) -> list[str]:
    settings = [f"{part}: {_values(config.get(part, {}))}" for part in ("objective", "sampler", "network", "train")]
    return [f"for: {config.get('model')}", *settings]


def _rounds_lines(_role: str, config: ConfigValues) -> list[str]:
    return [f"rounds: {_values(config.get('rounds', {}))}"]


def _no_lines(_role: str, _config: ConfigValues) -> list[str]:
    return []


# the configuration may come from an older version: what it lacks is left out
SETTINGS_OF_KIND: dict[str, Callable[[str, ConfigValues], list[str]]] = {
    "signatures": _filter_lines,
    "decisions": _filter_lines,
    "examples": _corpus_lines,
    "tokens": _tokens_lines,
    "tokenizers": _tokenizer_lines,
    "alignments": _no_lines,
    "pair_biases": _no_lines,
    "teacher_scores": _scores_lines,
    "substrings": _no_lines,
    "hypernetworks": _hypernetwork_lines,
    "students": _student_lines,
    "questions": _question_lines,
    "choice_scores": _choice_lines,
    "places": _place_lines,
    "next_bytes": _choice_lines,
    "demonstrations": _demonstration_lines,
    "neutral_answers": _activation_lines,
    "activations": _activation_lines,
    "activation_sums": _activation_lines,
    "projections": _projection_lines,
    "measurements": _no_lines,
    "rounds": _rounds_lines,
}
"""For each kind, the function that returns lines about a dataset's settings, from its role and its configuration."""


def _tokenizer(role: str, config: ConfigValues) -> str:
    student = config.get("student", {})
    setting = student.get("tokenizer") or student.get("model")
    of_student = setting if isinstance(setting, str) else "trained"
    # `tokens` are what a teacher scored; without a role, they may belong to either side
    names = {"tokens": config.get("teacher"), "teacher_tokens": config.get("teacher"), "student_tokens": of_student}
    return str(names.get(role) or "")


def _values(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        return str(settings)
    return ", ".join(f"{name} {_value(value)}" for name, value in settings.items() if value not in (None, [], (), {}))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {part}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _results(entry: CatalogEntry) -> list[str]:
    bits = getattr(entry.manifest, "results", {}).get("held_out_bits_per_byte", {})
    known = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in bits.items() if value is not None]
    return [f"held-out bits per byte: {', '.join(known)}"] if known else []
