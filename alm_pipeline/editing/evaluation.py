"""What an edit does to a model: bits per byte on control texts, log-odds of answers, and tasks, before and after.

All of them are paired: the same texts, prompts and questions, with the interval of the difference by the bootstrap.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.comparison.texts import texts_at
from alm_pipeline.config import FilesSource, ScoreConfig
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.files.rows import Columns
from alm_pipeline.corpus.sources import open_source, source_identity
from alm_pipeline.editing.directions.demonstrations import row_answers
from alm_pipeline.editing.directions.settings import DemonstrationsConfig, EditEvaluationConfig
from alm_pipeline.editing.directions.texts import TextEncoder
from alm_pipeline.ensemble.tasks import lm_eval_harness
from alm_pipeline.evaluation.bits_per_byte import TextTokens
from alm_pipeline.evaluation.bootstrap import Interval, paired_intervals
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.transfer.level.texts import encoded_texts, sample_texts
from storage.errors import UserError
from storage.schemas import TokenKind

WORSE = 0.2
"""the share by which control bits per byte may grow before it is called damage"""


@dataclass(frozen=True)
class Measure:
    """A number before and after the edit, and the difference with its interval."""

    name: str
    before: float
    after: float
    difference: Interval
    items: int

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Contrast:
    """A prompt, and answers whose probabilities are compared."""

    prompt: str
    positives: Sequence[str]
    negatives: Sequence[str]


class Evaluation:
    """Measures models on the same texts, prompts and questions."""

    def __init__(
        self,
        base: ModelReference,
        config: EditEvaluationConfig,
        columns: DemonstrationsConfig,
        score: ScoreConfig,
        chat: bool,
    ) -> None:
        """`columns` names the columns of contrasts as it does those of demonstrations."""
        self.base, self.config, self.score, self.chat = base, config, score, chat
        self._columns = columns
        self._encoder = TextEncoder(base, chat)
        self._control = control_texts(config, base.tokenizer)
        self._contrasts = (
            read_contrasts(columns.model_copy(update={"url": config.contrasts})) if config.contrasts else []
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the measures: settings, and the content of the files that are read."""
        urls = {"control": self.config.control, "contrasts": self.config.contrasts}
        contents = {name: source_identity(FilesSource(urls=(url,))) for name, url in urls.items() if url}
        settings = self.config.model_dump(mode="json", exclude=set(urls))
        columns = self._columns.model_dump(mode="json", include={"prompt", "positive", "negative", "choices"})
        return {**settings, "contents": contents, "columns": columns, "dtype": self.score.dtype, "chat": self.chat}

    def check(self) -> None:
        """Raise UserError for tasks that do not exist, before anything is computed."""
        if self.config.tasks:
            lm_eval_harness().check_tasks(self.config.tasks, self._task_folder)

    @property
    def _task_folder(self) -> Path | None:
        return Path(self.config.task_folder) if self.config.task_folder else None

    def compare(self, edited: ModelReference, device: str | None = None) -> list[Measure]:
        """Return every measure of the base and the edited model, the control first."""
        found = [self._measure(each, device) for each in (self.base, edited)]
        measures = [_measure("control bits per byte", *(each[0] for each in found))]
        if self._contrasts:
            measures.append(_measure("log-odds of positive answers", *(each[1] for each in found)))
        return [*measures, *self._tasks(edited, device)]

    def _measure(self, model: ModelReference, device: str | None) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        scorer = Scorer.load(model, self.score, device)
        control = _bits(self._control, scorer)
        odds = log_odds(scorer, self._encoder, self._contrasts)
        return [control, (odds, np.ones(len(odds)))]

    def _tasks(self, edited: ModelReference, device: str | None) -> list[Measure]:
        if not self.config.tasks:
            return []
        harness = lm_eval_harness()
        before, after = (
            harness.sample_metrics(results)
            for model in (self.base, edited)
            for results in harness.evaluate(
                [model.name],
                list(self.config.tasks),
                task_folder=self._task_folder,
                limit=self.config.limit,
                chat=self.chat,
                dtype=self.score.dtype,
                device=device,
                trust_remote_code=model.trust_remote_code,
                log_samples=True,
            )
        )
        ones = {name: np.ones(len(values)) for name, values in before.items()}
        return [_measure(name, (before[name], ones[name]), (after[name], ones[name])) for name in before]


def _measure(
    name: str, before: tuple[npt.ArrayLike, npt.ArrayLike], after: tuple[npt.ArrayLike, npt.ArrayLike]
) -> Measure:
    """Return Σ sums / Σ sizes of both, which are (sums, sizes) per item."""
    sums, sizes = zip(before, after, strict=True)
    base, edited = paired_intervals(np.stack(sums), np.stack(sizes))
    assert edited.difference
    return Measure(name, base.value.value, edited.value.value, edited.difference, len(np.asarray(sums[0])))


def control_texts(config: EditEvaluationConfig, tokenizer: LoadedTokenizer) -> TextTokens:
    """Return the control texts in the model's tokens. Raises UserError if there are none."""
    if config.control is None:
        return sample_texts(tokenizer)
    corpus = texts_at(config.control, config.control_text, config.control_examples)
    examples = iter_examples(corpus, Counter())
    texts = encoded_texts([example.text for example in examples if example.text is not None], tokenizer)
    if not texts.ids:
        raise UserError(f"{config.control}: has no texts to measure bits per byte on: name another control")
    return texts


def _bits(texts: TextTokens, scorer: Scorer) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """[texts] the bits of each text, and the bytes that they are for: content tokens with a prediction."""
    logprobs = np.concatenate([row.logprobs for row in texts.score(scorer, "control texts")])
    of_text = np.repeat(np.arange(len(texts.ids)), [len(row) for row in texts.ids])
    counted = ~np.isnan(logprobs) & (texts.kinds == TokenKind.CONTENT)
    bits = -logprobs[counted].astype(np.float64) / math.log(2)
    sizes = texts.byte_lengths[counted].astype(np.float64)
    sums = [np.bincount(of_text[counted], each, len(texts.ids)).astype(np.float64) for each in (bits, sizes)]
    return sums[0], sums[1]


def read_contrasts(config: DemonstrationsConfig) -> list[Contrast]:
    """Read rows with a prompt and answers, in the columns of demonstrations. Raises UserError if there are none."""
    answers = (config.choices,) if config.choices else (config.positive, config.negative)
    source, found = open_source(FilesSource(urls=(config.url,))), []
    for id_, row in source.rows(Columns((config.prompt, *answers)), Counter()):
        positives, negatives = row_answers(config, id_, row)
        if isinstance(prompt := row.get(config.prompt), str) and positives and negatives:
            found.append(Contrast(prompt, positives, negatives))
    if not found:
        raise UserError(f"{config.url}: has no rows with a prompt and answers: check the names of its columns")
    return found


def log_odds(scorer: Scorer, encoder: TextEncoder, contrasts: Sequence[Contrast]) -> npt.NDArray[np.float64]:
    """[contrasts] log Σ p(positive answer) − log Σ p(negative answer) after each prompt, in nats."""
    rows = [
        np.array(encoder.ids(each.prompt, answer), np.int32)
        for each in contrasts
        for answer in chain(each.positives, each.negatives)
    ]
    # the prompt's own log-probability is in all of a contrast's, and cancels
    totals = iter([float(np.nansum(found.logprobs, dtype=np.float64)) for found in scorer.score(rows)])
    odds = []
    for each in contrasts:
        positives, negatives = ([next(totals) for _ in answers] for answers in (each.positives, each.negatives))
        odds.append(np.logaddexp.reduce(positives) - np.logaddexp.reduce(negatives))
    return np.array(odds)


def damage(measures: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning if the control is worse by more than `WORSE`."""
    control = measures[0]
    growth = control["after"] / control["before"] - 1
    if growth <= WORSE:
        return None
    return (
        f"control bits per byte went from {control['before']:.3f} to {control['after']:.3f} ({growth:+.0%}): the edit "
        "damages the model; edit the MLP's outputs, fewer or later layers, or use a smaller strength"
    )
