"""Why a stage is not there already: which settings differ from those of the nearest earlier run in the store."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.config import AlmConfig, TrainedTokenizer
from alm_pipeline.planning.plan import Stage
from storage.dataset import load_manifest
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, load_folder_manifest
from storage.printed.secrets import without_secrets
from storage.schemas import Kind
from storage.urls import join_url, list_folders

_AT_ONCE = 16
_MOST_READ = 500
"""manifests of one kind"""
_MOST_SHOWN = 6

KINDS: Mapping[Stage, str] = {
    "train tokenizer": "tokenizers",
    "shard": Kind.EXAMPLES,
    "tokenize teacher": Kind.TOKENS,
    "tokenize student": Kind.TOKENS,
    "align": Kind.ALIGNMENTS,
    "pair biases": "pair_biases",
    "score": Kind.TEACHER_SCORES,
    "train": "students",
}
"""The folder of a store that holds what a stage writes."""

_ORIGINS: Mapping[Stage, tuple[Stage, ...]] = {
    "train tokenizer": (),
    "shard": ("train tokenizer",),
    "tokenize teacher": ("shard",),
    "tokenize student": ("shard", "train tokenizer"),
    "align": ("tokenize teacher", "tokenize student"),
    "pair biases": ("align",),
    "score": ("tokenize teacher",),
    "train": ("align", "pair biases", "score", "train tokenizer"),
}
"""What a stage reads of earlier ones."""

Settings = Mapping[str, Any]
"""plain values by dotted field"""


def decisive(config: AlmConfig, stage: Stage) -> Settings:
    """Return the settings that decide a stage's result, besides those that decide what it reads."""
    plain = without_secrets(config.model_dump(mode="json"))
    student = plain["student"]
    tokenizer = {"student.model": student["model"], "student.special_tokens": student["special_tokens"]}
    template = {"student.template": student["template"]}
    match stage:
        case "train tokenizer":
            trained = isinstance(config.student.tokenizer, TrainedTokenizer)
            texts = _without(plain["corpus"], "sample", "max_examples", "one_sided")
            made = {"student.tokenizer": student["tokenizer"]} | ({"corpus": texts} if trained else {})
            fields = tokenizer | template | made
        case "shard":
            fields = {"corpus": _without(plain["corpus"], "one_sided")}
        case "tokenize teacher":
            fields = {"teacher": plain["teacher"], "teacher_template": plain["teacher_template"]}
        case "tokenize student":
            fields = tokenizer | template | {"student.tokenizer": student["tokenizer"]}
        case "align":
            settings = AlignmentSettings.of(config)
            fields = {
                "corpus.one_sided": settings.one_sided,
                "objective.learn": list(settings.learn),
                "objective.learned_turns": settings.learned_turns,
            }
        case "pair biases":
            fields = {}
        case "score":
            fields = {"teacher": plain["teacher"], "score": config.score.identity()}
        case "train":
            fields = {
                "student": student,
                "objective": _without(plain["objective"], "learn", "learned_turns"),
                "train": config.train.identity(),
                # what makes it decide something comes first
                "evaluation": {"patience": None, "student": "last"} | config.evaluation.identity(),
            }
    return dict(_flat(fields))


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _flat(fields: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(fields, Mapping) and fields:
        for key, value in fields.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, fields


@dataclass(frozen=True)
class EarlierRuns:
    """The configurations that a store's datasets and folders were made with, by kind."""

    root: str
    config: AlmConfig

    def reasons(self, stage: Stage, missing: Sequence[Stage]) -> tuple[str, ...]:
        """Return why the stage is not there: the fields that differ from the nearest run, or the stages before it.

        `missing` are the earlier stages that are not complete. Empty if the store holds nothing of this kind.
        """
        runs = self._runs[KINDS[stage]]
        if not runs:
            return ()
        nearest = min(runs, key=lambda run: len(self._differences(run, _with_origins(stage))))
        own, all_differences = (self._differences(nearest, stages) for stages in ([stage], _with_origins(stage)))
        origins = [origin for origin in _ORIGINS[stage] if origin in missing]
        if own or origins:
            return (*_few(own), *([f"follows from {' and '.join(origins)}"] if origins else []))
        if all_differences:
            return _few(all_differences)
        return ("same settings, but other files of the corpus or the models, or another version of alm-pipeline",)

    def _differences(self, run: AlmConfig, stages: Sequence[Stage]) -> list[str]:
        before, now = ({k: v for stage in stages for k, v in decisive(c, stage).items()} for c in (run, self.config))
        names = [name for name in {**before, **now} if before.get(name, _ABSENT) != now.get(name, _ABSENT)]
        return [f"{name} {_shown(before.get(name))} → {_shown(now.get(name))}" for name in names]

    @cached_property
    def _runs(self) -> Mapping[str, list[AlmConfig]]:
        return {kind: list(self._read(kind)) for kind in dict.fromkeys(KINDS.values())}

    def _read(self, kind: str) -> Iterator[AlmConfig]:
        urls = [join_url(self.root, kind, name) for name in list_folders(join_url(self.root, kind))[:_MOST_READ]]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for provenance in pool.map(_provenance, urls):
                try:
                    run = AlmConfig.model_validate(provenance.get("configuration"))
                except ValidationError:  # of a version with other settings, or without any
                    continue
                yield from run.parts  # of a mixture, each source is compared


_ABSENT = object()


def _with_origins(stage: Stage) -> list[Stage]:
    """Return the stage and all before it that decide what it reads."""
    stages = [stage]
    for reached in stages:  # it grows
        stages += [origin for origin in _ORIGINS[reached] if origin not in stages]
    return stages


def _few(differences: list[str]) -> tuple[str, ...]:
    rest = len(differences) - _MOST_SHOWN
    return (*differences[:_MOST_SHOWN], *([f"and {rest} more settings"] if rest > 0 else []))


def _provenance(url: str) -> Mapping[str, Any]:
    try:
        manifest = load_folder_manifest(url) if url.rsplit("/", 2)[1] in FOLDER_KINDS else load_manifest(url)
    except UserError:  # damaged, or of another format
        return {}
    return manifest.provenance if manifest else {}


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return "none" if value is None else str(value)
