"""Scores tokens as `Scorer` does, by another engine: a server with the plugin alm-scores, or vLLM.

What each server answers is compared first: with this project's own scores where the teacher fits into memory, or with
the server's own in other batches and shorter windows; and with what the first server answers. After each shard, the
servers that answered are compared with themselves before the run.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.runtime.progress import Advance
from alm_pipeline.scoring.hidden_states import HeadReader
from alm_pipeline.scoring.scorer import Scorer, TokenScores, put
from alm_pipeline.scoring.served.checking import ServedCheck
from alm_pipeline.scoring.served.client import Client, ServerAway
from alm_pipeline.scoring.served.engines import RowEngine
from alm_pipeline.scoring.served.opening import http_engine, opened_engine
from alm_pipeline.scoring.served.probes import FACTORS, TEXTS, check_close, check_scale, has_reference
from alm_pipeline.scoring.served.replies import Reader, RowScores
from alm_pipeline.scoring.served.states import StatesReader
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from alm_pipeline.scoring.windows import Ids, WindowPlan, WindowRow
from storage.errors import UserError

_log = logging.getLogger("alm_pipeline")


class ServedScorer:
    """Scores tokens by an engine outside of transformers."""

    def __init__(
        self, engine: RowEngine, teacher: ModelReference, config: ScoreConfig, vocabulary: ServedVocabulary | None
    ) -> None:
        """`vocabulary` is what the plugin knows, whose ids no text may use; None where hidden states are returned."""
        self.engine, self.teacher, self.config = engine, teacher, config
        self._reserved = vocabulary.carriers if vocabulary else ()
        self._probed, self._probe_texts = dict[str, list[TokenScores]](), list[Ids]()
        self.windows = WindowPlan.of(teacher.context_length, config.window, config.context)
        self.longest = min((facts.longest for facts in engine.facts if facts.longest), default=None)
        """the tokens of the longest row that the engine takes; None: no limit"""
        sources = engine.urls or [facts.engine for facts in engine.facts]
        self._check = ServedCheck(teacher, config, dict(zip(sources, engine.facts, strict=True)))
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

        Raises UserError if a text is too long for the engine or uses one of the plugin's ids, if an answer is wrong or
        does not come, and if a server that answered serves something else than before the run.
        """
        answered = set[str]()
        scores = self._scored(examples, advance, begins=begins, names=names, answered=answered)
        self._probe_again(answered)
        return scores

    def _scored(
        self,
        examples: Sequence[Ids],
        advance: Advance | None = None,
        *,
        begins: Sequence[bool] | None = None,
        names: Sequence[str] | None = None,
        url: str | None = None,
        answered: set[str] | None = None,
    ) -> list[TokenScores]:
        """Return the scores of each example; with `url`, by this server. `answered` gets who answered."""
        scores = [TokenScores.empty(len(example), self.config.top_k) for example in examples]
        rows = [row for k, ids in enumerate(examples) for row in self.windows.rows(k, ids, bool(begins and begins[k]))]
        # the longest first, so that the last answers are not waited for
        rows.sort(key=lambda row: -len(row.ids))

        def name(number: int) -> str:
            example = rows[number].example
            return f"example {names[example]}" if names else f"text {example} (counted from 0)"

        self._check_rows(rows, name)
        while_waiting = (lambda: advance(0)) if advance else (lambda: None)
        for scored in self.engine.rows([row.ids for row in rows], name, while_waiting, url):
            self._check.check(scored)
            if answered is not None:
                answered.add(scored.source)
            row = rows[scored.number]
            put(scores, [row], _by_position(scored.scores, max(0, row.skipped - 1)))
            if advance:
                advance(row.scored)
        return scores

    def _check_rows(self, rows: Sequence[WindowRow], name: Callable[[int], str]) -> None:
        """Raise UserError if a row is too long for the engine, or uses one of the plugin's ids."""
        generated = 0 if self.config.served.hidden_states else 1
        for number, row in enumerate(rows):
            if self.longest and len(row.ids) > self.longest:
                raise UserError(
                    f"{name(number)}: has {len(row.ids)} tokens, and {self.description} takes at most {self.longest}: "
                    f"start it with a context of {(self.windows.size or len(row.ids)) + generated} tokens (`alm serve` "
                    f"prints how), or set score.window to {self.longest}"
                )
            if (used := np.isin(row.ids, self._reserved)).any():
                id_ = int(row.ids[np.argmax(used)])
                raise UserError(
                    f"{name(number)}: uses the token with the id {id_}, which the plugin alm-scores needs for its own "
                    "numbers: set score.engine to transformers, or leave the example out"
                )

    def ask_each(self) -> None:
        """Let each server score a few tokens. Raises UserError as `score` does."""
        ids = [id_ for id_ in range(self.teacher.vocabulary_rows) if id_ not in self._reserved][:4]
        for url in self.engine.urls:
            for scored in self.engine.rows([np.array(ids, dtype=np.int32)], lambda _: "a probe", lambda: None, url):
                self._check.check(scored)

    def probe(self) -> None:
        """Compare each server's scores of a few texts. Raises UserError if they differ by more than the tolerance."""
        fast = self.teacher.tokenizer.fast
        longest = min((limit for limit in (self.windows.size, self.longest) if limit), default=None)
        texts = [np.array(fast(text)["input_ids"][:longest], dtype=np.int32) for text in TEXTS]
        texts = [ids[~np.isin(ids, self._reserved)] for ids in texts]
        names, expected = [f"the probe {text[:20]!r}" for text in TEXTS], None
        if has_reference(self.teacher, self.config):
            own = self.config.model_copy(update={"engine": "transformers"})
            expected = Scorer.load(self.teacher, own, "cpu").score(texts)
        else:
            self._check.check_names()
        for url in self.engine.urls or (None,):
            found, who = self._scored(texts, url=url, names=names), url or self.description
            if expected is None:
                self._compare_windows(texts, found, url, who)
                self._check_scale(texts, found, url, who)
            else:
                check_close(found, expected, self.config, who, _REFERENCE, _OTHER_MODEL)
            if self._probed:
                first, scores = next(iter(self._probed.items()))
                check_close(found, scores, self.config, who, f"those of {first}", _OTHER_SERVER)
            if url:
                self._probed[url] = found
        self._probe_texts = texts

    def _compare_windows(self, texts: Sequence[Ids], found: Sequence[TokenScores], url: str | None, who: str) -> None:
        """Compare scores of texts with those of the same texts alone, and of halves of them."""
        halves = [ids[: (len(ids) + 1) // 2] for ids in texts]
        for text, half, whole in zip(texts, halves, found, strict=True):
            for ids in (text, half):
                alone = self._scored([ids], url=url, names=["a probe"])
                part = _part(RowScores(*whole), slice(len(ids)))
                check_close([part], alone, self.config, who, "its own in another batch and a shorter window", _OWN)

    def _check_scale(self, texts: Sequence[Ids], found: Sequence[TokenScores], url: str | None, who: str) -> None:
        """Compare what hidden states give with what they give in other lengths; nothing where an engine scores."""
        reader = self.engine.reader
        if not isinstance(reader, HeadReader):
            return
        try:
            for factor in FACTORS:
                self.engine.reader = reader.scaled(factor)
                check_scale(found, self._scored(texts, url=url, names=["a probe"] * len(texts)), factor, who)
        finally:
            self.engine.reader = reader

    def _probe_again(self, urls: Collection[str]) -> None:
        """Raise UserError if a server no longer gives the first probe's scores: it was started with another model."""
        for url in sorted(self._probed.keys() & urls):
            try:
                found = self._scored(self._probe_texts[:1], url=url, names=["a probe"])
            except ServerAway as error:
                if len(self.engine.urls) == 1:
                    raise
                _log.warning("its scores could not be compared again after its last rows: %s", error)
            else:
                check_close(
                    found, self._probed[url][:1], self.config, url, "its own before the run", _CHANGED, logging.DEBUG
                )


_REFERENCE = "this project's own scores of the same teacher"
_OTHER_SERVER = "start all servers with the same model, revision, --dtype and --quantization"
_CHANGED = "it was started again with another model: start it with the teacher, and run this again"
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
    config = config.model_copy(update={"served": served})
    vocabulary = _vocabulary(teacher, config)
    reader = StatesReader() if vocabulary is None else _plugin_reader(vocabulary, config)
    with Client(served.urls, served) as client:
        ServedScorer(http_engine(client, config, vocabulary, reader), teacher, config, vocabulary).ask_each()


def _vocabulary(teacher: ModelReference, config: ScoreConfig) -> ServedVocabulary | None:
    """Return what the plugin has to know; None with hidden states. Raises UserError for a teacher with an adapter."""
    teacher.refuse_served_adapter()
    return None if config.served.hidden_states else ServedVocabulary.of(teacher)


def _plugin_reader(vocabulary: ServedVocabulary, config: ScoreConfig) -> Reader:
    return Reader(vocabulary, config.top_k, is_normalized=config.engine == "sglang")


@contextmanager
def open_served_scorer(teacher: ModelReference, config: ScoreConfig) -> Iterator[ServedScorer]:
    """Yield a scorer of the configured engine after a probe.

    Raises UserError if the engine is not there or the probe fails.
    """
    vocabulary = _vocabulary(teacher, config)
    reader = HeadReader.load(teacher, config) if vocabulary is None else _plugin_reader(vocabulary, config)
    with opened_engine(teacher, config, vocabulary, reader) as (engine, config):
        scorer = ServedScorer(engine, teacher, config, vocabulary)
        scorer.probe()
        yield scorer
