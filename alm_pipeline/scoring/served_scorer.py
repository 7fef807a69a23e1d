"""Scores tokens as `Scorer` does, by another engine: a server with the plugin alm-scores, or vLLM.

What the engine answers is compared first: with this project's own scores where the teacher fits into memory, or with
the engine's own in other batches and shorter windows.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psutil

from alm_pipeline.config import ScoreConfig
from alm_pipeline.config.scoring import DTYPE_BYTES
from alm_pipeline.models.files import is_on_hub
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.runtime.progress import Advance
from alm_pipeline.scoring.scorer import Scorer, TokenScores, put
from alm_pipeline.scoring.served.checking import ServedCheck
from alm_pipeline.scoring.served.client import Client
from alm_pipeline.scoring.served.engines import RowEngine
from alm_pipeline.scoring.served.opening import http_engine, opened_engine
from alm_pipeline.scoring.served.replies import RowScores
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from alm_pipeline.scoring.windows import Ids, WindowPlan, WindowRow
from storage.errors import UserError

PROBES = (
    "The quick brown fox jumps over the lazy dog. Natalia sold 48 clips in April, and half as many in May.",
    "def add(left, right):\n    return left + right  # 12345\n\nclass Shape:\n    sides: int = 4\n",
    "東京は日本の首都です。我们在北京学习机器学习。 🙂👩‍👩‍👧 Привет, мир! Änderung, naïve café.",
)
"""texts in several scripts, which both sides score before a run"""
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
"""mean differences, in nats"""
_LARGEST = 20
"""how many times the mean a single difference may be"""
_log = logging.getLogger("alm_pipeline")


class ServedScorer:
    """Scores tokens by an engine outside of transformers."""

    def __init__(
        self, engine: RowEngine, teacher: ModelReference, config: ScoreConfig, vocabulary: ServedVocabulary
    ) -> None:
        self.engine, self.teacher, self.config, self.vocabulary = engine, teacher, config, vocabulary
        self.windows = WindowPlan.of(teacher.context_length, config.window, config.context)
        self.longest = min((facts.longest for facts in engine.facts if facts.longest), default=None)
        """the tokens of the longest row that the engine takes; None: no limit"""
        self._check = ServedCheck(teacher, config, engine.facts[0])
        if self.longest and self.longest < (self.windows.size or 0):
            _log.warning(
                "%s takes at most %d tokens, and the teacher's windows have %d: a longer text ends the run",
                self.description,
                self.longest,
                self.windows.size,
            )

    @property
    def threads(self) -> int:
        """How many shards are scored at a time.

        While the last rows of one shard are scored, the first of the next one keep the servers busy. vLLM in this
        process takes one call at a time.
        """
        return 1 if self.config.engine == "vllm" else 2

    @property
    def description(self) -> str:
        """What computed the scores: the engine, the dtype and the quantization, for records."""
        engines = " and ".join(sorted({facts.engine for facts in self.engine.facts}))
        served = self._check.served
        return f"{engines}, {served.dtype}, quantization {served.quantization}" if served else engines

    def score(
        self,
        examples: Sequence[Ids],
        advance: Advance | None = None,
        *,
        begins: Sequence[bool] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[TokenScores]:
        """Return the scores of each example, as `Scorer.score` does.

        Raises UserError if a text is too long for the engine or uses one of the plugin's ids, or if an answer is wrong
        or does not come.
        """
        scores = [TokenScores.empty(len(example), self.config.top_k) for example in examples]
        rows = [row for k, ids in enumerate(examples) for row in self.windows.rows(k, ids, bool(begins and begins[k]))]
        # the longest first, so that the last answers are not waited for
        rows.sort(key=lambda row: -len(row.ids))

        def name(number: int) -> str:
            example = rows[number].example
            return f"example {names[example]}" if names else f"text {example} (counted from 0)"

        self._check_rows(rows, name)
        while_waiting = (lambda: advance(0)) if advance else (lambda: None)
        for scored in self.engine.rows([row.ids for row in rows], name, while_waiting):
            self._check.check(scored)
            row = rows[scored.number]
            put(scores, [row], _by_position(scored.scores, max(0, row.skipped - 1)))
            if advance:
                advance(row.scored)
        return scores

    def _check_rows(self, rows: Sequence[WindowRow], name: Callable[[int], str]) -> None:
        """Raise UserError if a row is too long for the engine, or uses one of the plugin's ids."""
        for number, row in enumerate(rows):
            if self.longest and len(row.ids) > self.longest:
                raise UserError(
                    f"{name(number)}: has {len(row.ids)} tokens, and {self.description} takes at most {self.longest}: "
                    f"start it with a context of {(self.windows.size or len(row.ids)) + 1} tokens (`alm serve` prints "
                    f"how), or set score.window to {self.longest}"
                )
            if (used := np.isin(row.ids, self.vocabulary.carriers)).any():
                id_ = int(row.ids[np.argmax(used)])
                raise UserError(
                    f"{name(number)}: uses the token with the id {id_}, which the plugin alm-scores needs for its own "
                    "numbers: set score.engine to transformers, or leave the example out"
                )

    def probe(self) -> None:
        """Compare the engine's scores of a few texts. Raises UserError if they differ by more than the tolerance."""
        fast, longest = self.teacher.tokenizer.fast, self.windows.size
        texts = [np.array(fast(text)["input_ids"][:longest], dtype=np.int32) for text in PROBES]
        texts = [ids[~np.isin(ids, self.vocabulary.carriers)] for ids in texts]
        names = [f"the probe {text[:20]!r}" for text in PROBES]
        found = self.score(texts, names=names)
        if self._has_reference():
            scorer = Scorer.load(self.teacher, self.config.model_copy(update={"engine": "transformers"}), "cpu")
            self._compare(found, scorer.score(texts), "this project's own scores of the same teacher", _OTHER_MODEL)
            return
        self._check.check_names(self.engine.facts)
        halves = [ids[: (len(ids) + 1) // 2] for ids in texts]
        for text, half, whole in zip(texts, halves, found, strict=True):
            for ids in (text, half):
                (alone,) = self.score([ids], names=["a probe"])
                part = _part(RowScores(*whole), slice(len(ids)))
                self._compare([part], [alone], "its own in another batch and a shorter window", _OWN)

    def _compare(self, found: Sequence[TokenScores], expected: Sequence[TokenScores], other: str, fix: str) -> None:
        parts = [
            np.abs(ours.astype(np.float64) - theirs)
            for one, two in zip(found, expected, strict=True)
            for ours, theirs in ((one.logprobs[1:], two.logprobs[1:]), (one.boundary_logprobs, two.boundary_logprobs))
        ]
        differences = np.concatenate(parts)
        tolerance = self.config.served.tolerance or _TOLERANCE[self.config.dtype]
        mean, largest = float(differences.mean()), float(differences.max())
        _log.info("probe of %s: differs from %s by %.2g nats, at most %.2g", self.description, other, mean, largest)
        if not (mean <= tolerance and largest <= _LARGEST * tolerance):
            raise UserError(
                f"{', '.join(self.config.served.urls) or self.description}: its scores of a few texts differ from "
                f"{other} by {mean:.3g} nats on average and {largest:.3g} at most, and score.served.tolerance allows "
                f"{tolerance:g} and {_LARGEST * tolerance:g}: {fix}"
            )

    def _has_reference(self) -> bool:
        """Whether this project's own scorer can score here what the engine scores."""
        served = self.config.served
        if served.probe != "auto":
            return served.probe == "reference"
        is_quantized = served.quantization or getattr(self.teacher.load_config(), "quantization_config", None)
        if is_on_hub(self.teacher.name) or is_quantized:
            return False
        stored = sum(file.stat().st_size for file in self.teacher.weights())
        loaded = stored * DTYPE_BYTES[self.config.dtype] / DTYPE_BYTES.get(self.teacher.weights_dtype, 4)
        return bool(loaded < psutil.virtual_memory().available / 2)


_OTHER_MODEL = (
    "it serves another model, or computes it in another way: check the model, --dtype and --quantization of the "
    "server; if the difference is meant, set score.served.tolerance"
)
_OWN = (
    "its numbers depend on what else it computes: turn prefix caching off (--no-enable-prefix-caching), look for an "
    "error in its log, or set score.served.tolerance"
)


def _by_position(scores: RowScores, start: int) -> TokenScores:
    """Return a row's scores from a position on, as `put` takes them: with the log-probability of the next token."""
    following = np.append(scores.logprobs[1:], np.float32(np.nan))
    return _part(scores._replace(logprobs=following), slice(start, None))


def _part(scores: RowScores, tokens: slice) -> TokenScores:
    return TokenScores(
        scores.logprobs[tokens],
        scores.boundary_logprobs[tokens],
        scores.top_ids[tokens],
        scores.top_logprobs[tokens],
    )


def check_servers(teacher: ModelReference, config: ScoreConfig, wait_s: float) -> None:
    """Let servers that are there score a few tokens, without comparing them with anything.

    Raises ServerAway if one does not answer within `wait_s`, and UserError if one does not serve the teacher.
    """
    served = config.served.model_copy(update={"wait": wait_s, "timeout": max(wait_s, 1.0)})
    config, vocabulary = config.model_copy(update={"served": served}), ServedVocabulary.of(teacher)
    with Client(served.urls, served) as client:
        scorer = ServedScorer(http_engine(client, config, vocabulary), teacher, config, vocabulary)
        ids = [id_ for id_ in range(vocabulary.rows) if id_ not in vocabulary.carriers][:4]
        scorer.score([np.array(ids, dtype=np.int32)] * len(served.urls), names=["a probe"] * len(served.urls))


@contextmanager
def open_served_scorer(teacher: ModelReference, config: ScoreConfig) -> Iterator[ServedScorer]:
    """Yield a scorer of the configured engine after a probe.

    Raises UserError if the engine is not there or the probe fails.
    """
    vocabulary = ServedVocabulary.of(teacher)
    with opened_engine(teacher, config, vocabulary) as (engine, config):
        scorer = ServedScorer(engine, teacher, config, vocabulary)
        scorer.probe()
        yield scorer
