"""The settings in which configurations differ, as short readable texts: `γ=0.2, steps=2000`.

Configurations are plain values, as manifests record them. What an older version did not record has its default value,
and what decides nothing about a student (its name, logging, devices, checkpoints) is left out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alm_pipeline.config import AlmConfig
from storage.printed.secrets import without_secrets

Settings = Mapping[str, Any]
"""Plain values by dotted field, or a configuration as a manifest holds it."""

_FIRST = (
    "teacher",
    "student.model",
    "student.tokenizer",
    "corpus.name",
    "objective.gamma",
    "objective.temperature",
    "train.steps",
    "train.learning_rate",
)
"""The fields that are named first."""
_OF_STEPS = ("train.warmup_steps", "train.decay_steps")
_LABELS = {"student.model": "student", "corpus.name": "corpus", "objective.gamma": "γ"}
_SECTIONS = frozenset(AlmConfig.model_fields)
_MOST = 4
"""named of the differences, unless more are needed to tell configurations apart"""
_ABSENT = object()
_FINGERPRINT = re.compile(r"-[0-9a-f]{16}$")


def deciding_settings(recorded: Settings) -> dict[str, Any]:
    """Return what decides a student, of a configuration that a manifest records; as it is, if it can't be read."""
    try:
        config = AlmConfig.model_validate(recorded)
    except ValueError:  # of another version
        return {name: value for name, value in recorded.items() if name not in ("name", "log", "publish")}
    parts = config.model_dump(mode="json", include={"corpus", "teacher", "teacher_template", "student", "objective"})
    return without_secrets(  # type: ignore[no-any-return]
        {
            **parts,
            "score": config.score.identity(),
            "train": config.train.identity(),
            "evaluation": config.evaluation.identity(),
        }
    )


def differences(configs: Sequence[Settings]) -> list[dict[str, Any]]:
    """Return for each configuration its values of the fields that are not the same in all, by dotted field.

    What follows from another field counts only where that field does not tell configurations apart: of a corpus all
    but its name, and the parts of a training that are scaled with its steps. A value is None where the configuration
    does not have the field.
    """
    fields = list(_ordered(_differing([deciding_settings(config) for config in configs])))
    chosen: dict[str, list[Any]] = {}
    apart = 1
    for field, values in fields:
        distinct = _count_apart([*chosen.values(), values], len(configs))
        if distinct > apart or not _follows(field):
            chosen[field], apart = values, distinct
    return [{field: values[k] for field, values in chosen.items()} for k in range(len(configs))]


def _follows(field: str) -> bool:
    return field in _OF_STEPS or (field.startswith("corpus.") and field != "corpus.name")


def _differing(values: Sequence[Any], path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yield each field that differs, with its values."""
    if all(isinstance(value, Mapping) for value in values):
        for name in dict.fromkeys(name for value in values for name in value):
            yield from _differing([value.get(name, _ABSENT) for value in values], f"{path}.{name}" if path else name)
    elif any(value != values[0] for value in values):
        yield path, [None if value is _ABSENT else value for value in values]


def _ordered(fields: Iterable[tuple[str, list[Any]]]) -> list[tuple[str, list[Any]]]:
    def place(item: tuple[str, list[Any]]) -> int:
        field = item[0]
        if field in _FIRST:
            return _FIRST.index(field)
        return len(_FIRST) + _follows(field)

    return sorted(fields, key=place)


def _count_apart(columns: Sequence[Sequence[Any]], rows: int) -> int:
    return len({repr([column[row] for column in columns]) for row in range(rows)})


def texts_apart(rows: Sequence[Settings]) -> list[str]:
    """Return a short text of each row of differences, such as `γ=0.2, steps=2000`.

    It has the first four, and more if it needs them to be another text than those of the other rows; `…` stands for
    what is left out.
    """
    fields = list(rows[0]) if rows else []
    columns = {label: _texts([row[field] for row in rows]) for label, field in zip(labels(fields), fields, strict=True)}
    shown = min(_MOST, len(fields))
    while shown < len(fields) and _count_apart(list(columns.values())[:shown], len(rows)) < _count_apart(
        list(columns.values()), len(rows)
    ):
        shown += 1
    rest = ["…"] if shown < len(fields) else []
    return [
        ", ".join([*(f"{label}={texts[row]}" for label, texts in list(columns.items())[:shown]), *rest])
        for row in range(len(rows))
    ]


def labels(fields: Sequence[str]) -> list[str]:
    """Return a short label for each field: its last part, if that is not ambiguous among them."""
    short = [_LABELS.get(field, field.rsplit(".", 1)[-1]) for field in fields]
    counts = Counter(short)
    return [
        label if counts[label] == 1 and (label not in _SECTIONS or field in (label, *_LABELS)) else field
        for label, field in zip(short, fields, strict=True)
    ]


def _texts(values: Sequence[Any]) -> list[str]:
    """Return the values as texts; of paths only the last part, as long as that keeps them apart."""
    short = [value_text(value) for value in values]
    whole = [_plain_text(value) for value in values]
    return short if len(set(short)) == len(set(whole)) else whole


def value_text(value: Any) -> str:
    """Return a value as a short text: a model's path or URL is its last part."""
    text = _plain_text(value)
    if not isinstance(value, str):
        return text
    return _FINGERPRINT.sub("", text.rstrip("/").rsplit("/", 1)[-1].removeprefix("demo:")) or text


def _plain_text(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
        case list() | tuple():
            return "+".join(map(_plain_text, value)) or "none"
        case {"vocab_size": size}:
            return f"trained {size}"
        case Mapping():
            return " ".join(f"{name} {_plain_text(item)}" for name, item in value.items()) or "none"
        case _:
            return str(value)
