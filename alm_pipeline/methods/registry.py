"""The methods that a comparison trains: named settings of the objective, and a user's own variants.

A method replaces settings of one configuration. Everything else, and so every cache up to the teacher's scores, is the
same for all of them.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.fields.spelling import did_you_mean, nearest
from alm_pipeline.config.objective import TOP_TERMS
from alm_pipeline.recipes.overrides import override, parse_overrides
from storage.errors import UserError, naming

ORIGINAL, TEACHER = UNMADE = ("original", "teacher")
"""the models that no method made: the student's before anything was done to it, and the teacher"""
Settings = Mapping[str, Any]
"""values of a configuration by dotted name"""
_TOP_K = 16


def _terms(balance: str = "fixed", **weights: float) -> Settings:
    return {"objective.terms": weights, "objective.balance": balance}


METHODS: Mapping[str, Settings] = {
    "alm": _terms(alm=1.0),
    "alm+sft": _terms("temperature", alm=1.0, sft=1.0),
    "alm-published": {**_terms(alm=1.0), "objective.debias": "end", "objective.temperature": 100.0},
    "bpm+sft": _terms(bpm=1.0, sft=1.0),
    "sft": _terms(sft=1.0),
    "uld": _terms(sft=1.0, uld=1.5),
    "mined": _terms(sft=1.0, mined=1.0),
    "dskd": _terms(sft=1.0, dskd=1.0),
    "gold": _terms(gold=1.0),
    "simct": _terms(simct=1.0),
    "untrained": {"train.steps": 0, "train.warmup_steps": 0},
}
"""`uld`, `mined` and `dskd` are published together with cross-entropy (`sft`). The weights are published ones: 1.5 for
ULD (arXiv 2402.12030), equal parts for DSKD and for MinED as DSKD's baseline (arXiv 2406.17328). `gold` and `simct`
are used alone by their authors."""


class MethodRun(NamedTuple):
    """One student of a comparison."""

    method: str
    seed: int
    config: AlmConfig


def check_variants(content: Mapping[Any, Any], where: str) -> Mapping[str, Settings]:
    """Check methods of the user's own. Raises UserError naming `where` and the method that is wrong."""
    for name, settings in content.items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(f"{where}: methods: {name!r} is not a name: write one line of visible characters")
        if name in METHODS or name in UNMADE:
            raise UserError(f"{where}: methods: {name} is built in: choose another name")
        if not isinstance(settings, dict) or not all(isinstance(field, str) for field in settings):
            raise UserError(f"{where}: methods: {name}: is not a mapping such as {{objective.temperature: 1.0}}")
    return content


def method_runs(
    config: AlmConfig, names: Sequence[str], seeds: Sequence[int], variants: Mapping[str, Settings] | None = None
) -> list[MethodRun]:
    """Return the students to train, seed after seed, so that an interrupted comparison has whole seeds.

    Where a method needs the teacher's likeliest tokens, all share the scores that have them. Raises UserError for an
    unknown or repeated name, for two methods that are the same student, and as `override` does.
    """
    methods = {**METHODS, **(variants or {})}
    _check_names(names, methods)
    chosen = {name: _configured(config, name, methods[name]) for name in names}
    needs_likeliest = any(not TOP_TERMS.isdisjoint(each.objective.terms) for each in chosen.values())
    top_k = config.score.top_k or (_TOP_K if needs_likeliest else 0)
    runs = [MethodRun(name, seed, _student(chosen[name], name, seed, top_k)) for seed in seeds for name in names]
    _require_different(runs[: len(names)])
    return runs


def _check_names(names: Sequence[str], methods: Mapping[str, Settings]) -> None:
    if not names:
        raise UserError(f"--methods: name at least one of {', '.join(methods)}")
    for name in names:
        if name not in methods:
            hint = did_you_mean(dict.fromkeys(nearest(name, methods), ""))
            raise UserError(f"--methods: there is no method {name}{hint}; there are {', '.join(methods)}")
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"--methods: {repeated[0]} is named twice")


_SAME: Mapping[str, str] = {
    "corpus": "what is measured on is held out of it",
    "teacher": "the distance to it is measured",
    "teacher_template": "the distance to the teacher is measured",
    "student.model": "what students keep of it is measured",
    "train.seed": "each method has the same seeds (--seeds)",
    "name": "a student is called by its method and seed",
}
"""Fields that a method can't set, and why: students would be measured by other things, or the value would not count."""


def _configured(config: AlmConfig, name: str, settings: Settings) -> AlmConfig:
    with naming(f"method {name}"):
        found = override(config, parse_overrides({"settings": dict(settings)}))
        for field, why in _SAME.items():
            if attrgetter(field)(found) != attrgetter(field)(config):
                raise UserError(f"{field}: is the same for all methods, as {why}: leave it out")
    return found


def _student(config: AlmConfig, name: str, seed: int, top_k: int) -> AlmConfig:
    changes = {
        "name": f"{name}, seed {seed}",
        "train": config.train.model_copy(update={"seed": seed}),
        "score": config.score.model_copy(update={"top_k": config.score.top_k or top_k}),
    }
    return config.model_copy(update=changes)


def _require_different(runs: Sequence[MethodRun]) -> None:
    methods: dict[str, str] = {}
    for run in runs:
        student = run.config.model_copy(update={"name": None}).model_dump_json()
        if student in methods:
            raise UserError(f"--methods: {methods[student]} and {run.method} are the same student: leave one out")
        methods[student] = run.method
