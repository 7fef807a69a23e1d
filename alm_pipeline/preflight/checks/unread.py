"""Settings that another one makes pointless: what they ask for would not happen, so a warning names them.

They stop no run: a file or recipe may set them for other runs, with another value of the one that decides. Those that
only one person can have meant (`decay_steps` without the schedule `wsd`) are refused by the configuration itself.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import BaseModel

from alm_pipeline.config import AlmConfig, CorpusConfig, ObjectiveConfig
from alm_pipeline.objective.chunking.registry import CHUNKINGS
from alm_pipeline.preflight.context import Context

Reason = Callable[[AlmConfig], str | None]
"""Returns why nothing reads a setting; None if something does."""


_OF_TURNS = ("learn", "learned_turns")


def _without(is_there: Callable[[AlmConfig], object], reason: str) -> Reason:
    return lambda config: None if is_there(config) else reason


def _of_objective(get: Callable[[AlmConfig], ObjectiveConfig | None]) -> dict[str, Reason]:
    """Return the reasons for the settings of an objective, by name."""

    def chunking(config: AlmConfig) -> str | None:
        objective = get(config)
        has_threshold = objective is None or CHUNKINGS[objective.chunking].reads_gamma
        return None if objective is None or has_threshold else f"the chunking {objective.chunking} has no threshold"

    def divergence(config: AlmConfig) -> str | None:
        objective = get(config)
        is_divided = objective is None or objective.divergence not in ("abs", "binary_kl_limit")
        return None if objective is None or is_divided else f"the divergence {objective.divergence} divides by nothing"

    def turns(config: AlmConfig) -> str | None:
        objective = get(config)
        return None if objective is None or objective.assistant_only else "all turns are learned (assistant_only)"

    return {"gamma": chunking, "temperature": divergence, **dict.fromkeys(_OF_TURNS, turns)}


def _of_rounds(config: AlmConfig) -> ObjectiveConfig | None:
    return config.rounds.objective if config.rounds else None


def _new_tokenizer(config: AlmConfig) -> bool:
    return config.student.tokenizer not in (None, config.student.model)


_KEEPS = _without(_new_tokenizer, "the student keeps its model's tokenizer")
_SERVED = _without(lambda config: config.score.engine != "transformers", "the engine transformers asks no server")
_STARTED = _without(
    lambda config: config.score.engine == "transformers" or not config.score.served.urls, "the servers are running"
)
_OF_STARTED = ("tensor_parallel", "pipeline_parallel", "batched_tokens", "arguments", "command", "start_timeout")
_NAMING = frozenset({"wandb", "trackio", "mlflow"})

UNREAD: Mapping[str, Reason] = {
    **{
        f"objective.{name}": reason
        for name, reason in _of_objective(lambda config: config.objective).items()
        if name not in _OF_TURNS  # which another check explains, with the conversations
    },
    **{f"rounds.objective.{name}": reason for name, reason in _of_objective(_of_rounds).items()},
    "student.initialization": _KEEPS,
    "student.level": _KEEPS,
    "student.special_tokens": _KEEPS,
    "student.omp_terms": _without(
        lambda config: config.student.initialization == "omp", "the initialization is not omp"
    ),
    "evaluation.min_improvement": _without(lambda config: config.evaluation.patience, "patience is not set"),
    "evaluation.sample_tokens": _without(lambda config: config.evaluation.samples, "samples is 0"),
    "score.compile": _without(
        lambda config: config.score.engine == "transformers", "the engine computes in layers of its own"
    ),
    "score.served": _SERVED,
    **{f"score.served.{name}": _STARTED for name in _OF_STARTED},
    "log.project": _without(lambda config: _NAMING & set(config.log.report_to), "no tracker of report_to has projects"),
    "log.run_name": _without(lambda config: config.log.report_to, "report_to names no tracker"),
}
"""Why a setting is not read, if it is not: by dotted name, outside of the corpus."""


def _of_corpus(corpus: CorpusConfig, *, is_mixture: bool) -> dict[str, str]:
    """Return why settings of a corpus or of a source are not read, by name."""
    near = corpus.deduplicate is None or corpus.deduplicate.near
    reasons = {} if near else dict.fromkeys(("deduplicate.similarity", "deduplicate.words"), "near is false")
    return reasons if is_mixture else {**reasons, "deduplicate.across": "there is one source"}


def unread_settings(context: Context) -> None:
    """Every setting that is not its default is read by something."""
    config = context.config
    reasons = {field: found for field, reason in UNREAD.items() if (found := reason(config))}
    for field, reason in reasons.items():
        if _is_set(config, field.split(".")):
            _warn(context, field, reason)
    for source in config.sources or (config.texts,):
        for name, reason in _of_corpus(source, is_mixture=config.is_mixture).items():
            if _is_set(source, name.split(".")):
                _warn(context, f"corpus.{source.name}.{name}" if config.is_mixture else f"corpus.{name}", reason)


def _warn(context: Context, field: str, reason: str) -> None:
    context.add(field, f"is not used, as {reason}", "leave it out", severity="warning")


def _is_set(model: BaseModel, path: Collection[str]) -> bool:
    """Return whether a setting has another value than its default. Sections that are not there have none."""
    *parents, name = path
    section: Any = model
    for parent in parents:
        section = getattr(section, parent)
    if section is None:
        return False
    return bool(getattr(section, name) != type(section).model_fields[name].get_default(call_default_factory=True))
