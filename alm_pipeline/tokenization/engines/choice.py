"""Which engine encodes a dataset: the fastest one that is proven to give the standard engine's ids."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import BaseModel
from tokenizers import Tokenizer

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.tokenization.engines.findings import Findings
from alm_pipeline.tokenization.engines.making import EngineInTheMaking
from alm_pipeline.tokenization.engines.proof import (
    DifferentIds,
    added_token_texts,
    difference,
    first_difference,
    token_texts,
)
from alm_pipeline.tokenization.engines.registry import FAST_ENGINES, EngineFactory
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView

_TIMINGS = 3
_TOKENS_WORTH_A_THREAD = 2**16
"""the vocabulary from which on it takes over half a second to make an engine"""


@dataclass(frozen=True)
class Trial:
    """Texts of the dataset that an engine has to encode as the standard engine does, and is timed on."""

    tokenizer: str
    """its identity, under which the outcome on adversarial texts and on the tokens' own texts is recorded"""
    dataset: str
    """its name, under which the outcome on its own texts is recorded"""
    texts: str
    """what a refusal calls the texts: `shard 3`"""
    agrees: Callable[[Engine], bool]
    """returns whether the engine gives these texts the standard engine's ids; may raise DifferentIds"""
    sample: Callable[[], Sequence[str]]
    """returns some of the texts, for engines to be timed on. As `agrees`, only called if nobody knows the outcome"""


class Outcome(BaseModel):
    """What has been found out about an engine."""

    difference: str | None
    """how it differs from the standard engine"""


class TrialOutcome(Outcome):
    """What has been found out about an engine on a dataset."""

    speed: float
    """how many times as fast as the standard engine it is"""


@dataclass(frozen=True)
class EngineChoice:
    """The engine to use, and why each other engine is not used.

    An engine whose package is not installed is not among the refusals.
    """

    engine: Engine
    speed: float
    """in multiples of the standard engine's"""
    refusals: Mapping[str, str]
    differs: bool
    """whether an engine gave other ids than the standard one"""

    def __str__(self) -> str:
        speed = f", which is {_times(self.speed)}" if self.speed != 1 else ""
        refusals = "".join(f"; not with {name}: {reason}" for name, reason in self.refusals.items())
        return f"encoded with {self.engine.name}{speed}{refusals}"


def choose_engine(
    tokenizer: Tokenizer,
    view: ByteView,
    standard: StandardEngine,
    trial: Trial,
    findings: Findings,
    engines: Mapping[str, EngineFactory] = FAST_ENGINES,
) -> EngineChoice:
    """Return the fastest engine that gives the standard engine's ids.

    It has to for the adversarial texts, for those of the tokens and of the added ones, and for the trial's texts. The
    standard engine is returned where no such engine is faster. The outcomes are recorded in the findings, and what is
    recorded is not tried again.
    """
    examination = _Examination(tokenizer, view, standard, trial, findings)
    proven: dict[str, tuple[Engine, float]] = {}
    refusals: dict[str, str] = {}
    differs = False
    for name, factory in engines.items():
        try:
            proven[name] = examination.of(name, factory)
            refusals[name] = _times(proven[name][1])
        except ImportError:
            continue
        except ValueError as error:
            refusals[name] = str(error)
            differs |= isinstance(error, DifferentIds)
    engine, speed = max([(standard, 1.0), *proven.values()], key=lambda pair: pair[1])
    refusals.pop(engine.name, None)
    if isinstance(engine, EngineInTheMaking):
        engine.making.start()
    return EngineChoice(engine, speed, refusals, differs)


def _times(speed: float) -> str:
    return f"{speed:.1f} times as fast as tokenizers"


def refute(engine: Engine, tokenizer: str, dataset: str, difference: str, findings: Findings) -> None:
    """Record that an engine differs, so that no process of this machine uses it for the tokenizer again."""
    findings.record(_proof_question(engine.name), tokenizer, Outcome(difference=difference))
    findings.record(_trial_question(engine.name), dataset, TrialOutcome(difference=difference, speed=0))


def is_proven(engine: str, tokenizer: str, findings: Findings) -> bool:
    """Return whether a process of this machine has found that the engine of this name is exact."""
    answer = findings.recall(_proof_question(engine), tokenizer, Outcome)
    return answer is not None and answer.difference is None


def is_refuted(engine: Engine, tokenizer: str, findings: Findings) -> bool:
    """Return whether a process of this machine has found that an engine differs, maybe after it was chosen."""
    answer = findings.recall(_proof_question(engine.name), tokenizer, Outcome)
    return answer is not None and answer.difference is not None


def _proof_question(name: str) -> str:
    return f"whether {name} encodes adversarial texts and the tokens' own as tokenizers does"


def _trial_question(name: str) -> str:
    return f"whether {name} encodes a dataset's texts as tokenizers does, and how fast"


@dataclass(frozen=True)
class _Examination:
    """What engines are examined with."""

    tokenizer: Tokenizer
    view: ByteView
    standard: StandardEngine
    trial: Trial
    findings: Findings

    def of(self, name: str, factory: EngineFactory) -> tuple[Engine, float]:
        """Return an engine and its speed.

        Raises ValueError if it can't use the tokenizer, and DifferentIds if it gives other ids.
        """
        proof = self.findings.recall(_proof_question(name), self.trial.tokenizer, Outcome)
        _require_same(proof)
        outcome = self.findings.recall(_trial_question(name), self.trial.dataset, TrialOutcome)
        _require_same(outcome)
        if proof is not None and outcome is not None and self.view.size >= _TOKENS_WORTH_A_THREAD:
            make = partial(factory, self.tokenizer, self.view, self.standard)
            return EngineInTheMaking(name, make, self.standard), outcome.speed
        engine = factory(self.tokenizer, self.view, self.standard)
        if proof is None:
            proof = Outcome(difference=self._difference(engine))
            _require_same(self.findings.record(_proof_question(name), self.trial.tokenizer, proof))
        if outcome is None:
            outcome = self._tried(engine)
            _require_same(self.findings.record(_trial_question(name), self.trial.dataset, outcome))
        return engine, outcome.speed

    def _difference(self, engine: Engine) -> str | None:
        """Return how an engine differs on texts that do not depend on the corpus."""
        for texts in (ADVERSARIAL_TEXTS, added_token_texts(self.view)):
            for special_literals in (False, True):
                text = first_difference(engine, self.standard, special_literals=special_literals, texts=texts)
                if text is not None:
                    return difference(engine, text)
        text = first_difference(engine, self.standard, special_literals=False, texts=token_texts(self.view))
        return None if text is None else difference(engine, text)

    def _tried(self, engine: Engine) -> TrialOutcome:
        try:
            if self.trial.agrees(engine):
                return TrialOutcome(difference=None, speed=self._speed(engine))
        except DifferentIds as error:
            return TrialOutcome(difference=str(error), speed=0)
        return TrialOutcome(difference=f"{engine.name} gives different ids for {self.trial.texts}", speed=0)

    def _speed(self, engine: Engine) -> float:
        """Return how many times as fast as the standard engine an engine encodes the sample."""
        texts, seconds = self.trial.sample(), dict[Engine, list[float]]()
        for _ in range(_TIMINGS):
            for each in (self.standard, engine):
                started = time.perf_counter()
                each.encode(texts, special_literals=False)
                seconds.setdefault(each, []).append(time.perf_counter() - started)
        return min(seconds[self.standard]) / max(min(seconds[engine]), 1e-9)


def _require_same(outcome: Outcome | None) -> None:
    if outcome is not None and outcome.difference is not None:
        raise DifferentIds(outcome.difference)
