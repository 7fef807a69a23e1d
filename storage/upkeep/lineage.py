"""What to tell of each dataset in a lineage, in a few words: names where its identity has hashes."""

from collections.abc import Mapping
from typing import Any

from storage.upkeep.catalog import Entry, Node

Plain = Mapping[str, Any]


def highlights(node: Node) -> list[str]:
    """What the dataset was made with, by its manifest."""
    if node.entry is None or node.entry.manifest is None:
        return []
    config = node.entry.provenance.get("configuration") or {}
    lines = _named(node.role, node.entry.kind, config) if config else []
    return [*lines, *_results(node.entry)]


def origin(entry: Entry | None) -> str:
    """The versions and the commit that made it; empty where its manifest does not tell."""
    kept = entry.provenance if entry else {}
    versions = ", ".join(f"{name} {version}" for name, version in kept.get("versions", {}).items())
    commit = f"commit {kept['commit'][:12]}" if kept.get("commit") else ""
    changed = ", with changes that are not committed" if kept.get("uncommitted_changes") else ""
    return "; ".join(part for part in (f"{commit}{changed}", versions) if part)


def _named(role: str, kind: str, config: Plain) -> list[str]:
    # the configuration may be of an older version: what it does not have is left out
    score, student = config.get("score", {}), config.get("student", {})
    match kind:
        case "examples":
            return [f"corpus: {_values(config.get('corpus', {}).get('source', {}))}"]
        case "tokens":
            return [f"tokenizer: {name}"] if (name := _tokenizer(role, config)) else []
        case "tokenizers":
            vocabulary = student.get("tokenizer")
            how = "vocabulary of" if isinstance(vocabulary, str) else "trained"
            return [f"{how}: {_values(vocabulary)}", f"special tokens of: {student.get('model')}"]
        case "teacher_scores":
            return [f"teacher: {config.get('teacher')}, {_values(score)}"]
        case "students":
            settings = [f"{part}: {_values(config.get(part, {}))}" for part in ("objective", "train")]
            return [f"from: {student.get('model')}", *settings]
        case _:
            return []


def _tokenizer(role: str, config: Plain) -> str:
    student = config.get("student", {})
    own = student.get("tokenizer") or student.get("model")
    of_student = own if isinstance(own, str) else "trained"
    # `tokens` are what a teacher scored; asked for alone, they may be either side's
    names = {"tokens": config.get("teacher"), "teacher_tokens": config.get("teacher"), "student_tokens": of_student}
    return str(names.get(role) or "")


def _values(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        return str(settings)
    return ", ".join(f"{name} {_value(value)}" for name, value in settings.items() if value not in (None, [], ()))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {part}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _results(entry: Entry) -> list[str]:
    bits = getattr(entry.manifest, "results", {}).get("held_out_bits_per_byte", {})
    known = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in bits.items() if value is not None]
    return [f"held-out bits per byte: {', '.join(known)}"] if known else []
