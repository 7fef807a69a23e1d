"""Which engine encodes a dataset: the first fast one that is proven to give the standard engine's ids."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from pydantic import BaseModel
from tokenizers import Tokenizer

from alm_pipeline.tokenization.engines.findings import Findings
from alm_pipeline.tokenization.engines.proof import first_difference
from alm_pipeline.tokenization.engines.registry import FAST_ENGINES, EngineFactory
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView

_TEXT_CHARACTERS = 80


@dataclass(frozen=True)
class Trial:
    """Texts of the dataset that an engine has to encode as the standard engine does."""

    dataset: str
    """its name, which stands for its tokenizer and its texts: the findings are about it"""
    texts: str
    """what a refusal calls the texts: `shard 3`"""
    agrees: Callable[[Engine], bool]
    """returns whether the engine gives these texts the standard engine's ids; only called if nobody knows it yet"""


class TrialOutcome(BaseModel):
    """What has been found out about an engine on a dataset."""

    difference: str | None
    """how it differs from the standard engine"""


@dataclass(frozen=True)
class EngineChoice:
    """The engine to use, and why each engine that would have been preferred is not used.

    An engine whose package is not installed is not among the refusals.
    """

    engine: Engine
    refusals: Mapping[str, str]


def choose_engine(
    tokenizer: Tokenizer,
    view: ByteView,
    standard: StandardEngine,
    trial: Trial,
    findings: Findings,
    engines: Mapping[str, EngineFactory] = FAST_ENGINES,
) -> EngineChoice:
    """Return the first engine that gives the standard engine's ids for the adversarial texts and the trial's texts.

    The standard engine is returned where there is none. A trial's outcome is recorded in the findings, and a recorded
    one is not tried again.
    """
    refusals: dict[str, str] = {}
    for name, factory in engines.items():
        try:
            build = partial(factory, tokenizer, view, standard, findings)
            return EngineChoice(_proven(name, build, standard, trial, findings), refusals)
        except ImportError:
            continue
        except ValueError as error:
            refusals[name] = str(error)
    return EngineChoice(standard, refusals)


def _proven(
    name: str, build: Callable[[], Engine], standard: StandardEngine, trial: Trial, findings: Findings
) -> Engine:
    """Return the engine. Raises ValueError when it can't use the tokenizer or gives different ids."""
    question = f"whether {name} encodes a dataset's texts as tokenizers does"
    answer = findings.recall(question, trial.dataset, TrialOutcome)
    if answer and answer.difference:
        raise ValueError(answer.difference)
    engine = build()
    if not answer:
        difference = _difference(engine, standard, trial)
        findings.record(question, trial.dataset, TrialOutcome(difference=difference))
        if difference:
            raise ValueError(difference)
    return engine


def _difference(engine: Engine, standard: Engine, trial: Trial) -> str | None:
    for special_literals in (False, True):
        text = first_difference(engine, standard, special_literals=special_literals)
        if text is not None:
            return f"{engine.name} gives different ids for {text[:_TEXT_CHARACTERS]!r}"
    return None if trial.agrees(engine) else f"{engine.name} gives different ids for {trial.texts}"
