"""The stage MODEL → MEASUREMENTS: what a model, edited or not, does with texts, prompts and questions, item by item.

They are kept by item, so that two models can be compared on the same items, and by model, so that several edits of one
model measure it once.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alm_pipeline.comparison.corpora import texts_at
from alm_pipeline.config import FilesSource, ScoreConfig
from alm_pipeline.config.fields.repeated import place_of
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.files.errors import columns_set_by
from alm_pipeline.corpus.files.rows import Columns
from alm_pipeline.corpus.sources import open_source, source_identity
from alm_pipeline.editing.directions.demonstrations import demonstration_rows, row_answers
from alm_pipeline.editing.directions.settings import DemonstrationsConfig, EditEvaluationConfig
from alm_pipeline.editing.directions.texts import TextEncoder
from alm_pipeline.ensemble.tasks import lm_eval_harness, task_files
from alm_pipeline.evaluation.bits_per_byte import TextTokens
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.transfer.level.texts import SAMPLE, encoded_texts, sample_texts
from storage.errors import UserError
from storage.fingerprints import hash_file
from storage.folders import FolderManifest, StoredFolder, make_folder
from storage.lease import Lease
from storage.printed.counts import counts_in_words
from storage.printed.secrets import masked
from storage.schemas import TokenKind

STAGE_VERSION = 1
_log = logging.getLogger("alm_pipeline")
FILE = "measurements.parquet"
CONTROL, LOG_ODDS = "control bits per byte", "log-odds of positive answers"

Floats = npt.NDArray[np.float64]

SCHEMA = pa.schema(
    [
        pa.field("measure", pa.string(), nullable=False),
        pa.field("sums", pa.list_(pa.float64()), nullable=False),
        pa.field("sizes", pa.list_(pa.float64()), nullable=False),
    ]
)
"""The columns of `measurements.parquet`, with a row per measure, whose value is Σ sums / Σ sizes over items."""


@dataclass(frozen=True)
class Items:
    """A measure by item; its value is Σ sums / Σ sizes."""

    sums: Floats
    """such as the bits of each text, or whether each answer is right"""
    sizes: Floats
    """such as the bytes of each text, or 1"""

    @classmethod
    def of(cls, values: Floats) -> "Items":
        """Return a measure whose value is the mean of these."""
        return cls(values, np.ones(len(values)))


@dataclass(frozen=True)
class Contrast:
    """A prompt, and answers whose probabilities are compared."""

    prompt: str
    positives: Sequence[str]
    negatives: Sequence[str]


class Measurements:
    """Measures models on the same texts, prompts and questions."""

    def __init__(
        self,
        base: ModelReference,
        config: EditEvaluationConfig,
        columns: DemonstrationsConfig,
        score: ScoreConfig,
        chat: bool,
    ) -> None:
        """`columns` names the columns of contrasts as it does those of demonstrations.

        Raises UserError for texts, rows or tasks that can't be read, and for contrasts that are the demonstrations.
        """
        self.config, self.score, self.chat, self._columns = config, score, chat, columns
        if config.contrasts and place_of(config.contrasts) == place_of(columns.url):
            raise UserError("contrasts: are the demonstrations, which make the edit: name rows kept apart from them")
        self._encoder = TextEncoder(base, chat)
        self._task_folder = Path(config.task_folder) if config.task_folder else None
        self._control = control_texts(config, base.tokenizer)
        self._contrasts = (
            read_contrasts(columns.model_copy(update={"url": config.contrasts})) if config.contrasts else []
        )
        if config.tasks:
            lm_eval_harness().check_tasks(config.tasks, self._task_folder)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the measurements of a model: settings, and the content of the files that are read."""
        urls = {"control": self.config.control, "contrasts": self.config.contrasts}
        contents = {name: source_identity(FilesSource(urls=(url,))) for name, url in urls.items() if url}
        settings = self.config.model_dump(mode="json", exclude=set(urls))
        settings |= {"task_folder": task_files(self._task_folder)} if self._task_folder else {}
        columns = self._columns.model_dump(mode="json", include={"prompt", "positive", "negative", "choices"})
        sample = {} if self.config.control else {"sample": hash_file(SAMPLE)}
        score = {"dtype": self.score.dtype, "chat": self.chat}
        return {"settings": settings, "contents": contents | sample, "columns": columns, **score}

    def of(
        self,
        model: ModelReference,
        root: str,
        device: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> dict[str, Items]:
        """Return a model's measurements by name, the control first; they are stored, and measured once."""
        identity = {
            "stage_version": STAGE_VERSION,
            "model": model.identity,
            "tokenizer": model.tokenizer.identity,
            **self.identity,
        }
        folder = StoredFolder(root, "measurements", model.label, identity, provenance=provenance or {})

        def make(target: StoredFolder, lease: Lease) -> FolderManifest:
            found = self._measure(model, device)
            model.check_unchanged()
            columns = [list(found), [it.sums for it in found.values()], [it.sizes for it in found.values()]]
            target.path.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns, schema=SCHEMA), target.path / FILE, compression="zstd")
            return target.finish({name: float(it.sums.sum() / it.sizes.sum()) for name, it in found.items()}, lease)

        make_folder(folder, make)
        rows = pq.read_table(folder.fetch() / FILE).to_pylist()
        return {row["measure"]: Items(np.array(row["sums"]), np.array(row["sizes"])) for row in rows}

    def _measure(self, model: ModelReference, device: str | None) -> dict[str, Items]:
        scorer = Scorer.load(model, self.score, device)
        found = {CONTROL: bits_of_texts(self._control, scorer)}
        if self._contrasts:
            found[LOG_ODDS] = Items.of(log_odds(scorer, self._encoder, self._contrasts))
        return found | self._tasks(model, device)

    def _tasks(self, model: ModelReference, device: str | None) -> dict[str, Items]:
        if not self.config.tasks:
            return {}
        harness = lm_eval_harness()
        (results,) = harness.evaluate(
            [model.name],
            list(self.config.tasks),
            task_folder=self._task_folder,
            limit=self.config.limit,
            chat=self.chat,
            dtype=self.score.dtype,
            device=device,
            trust_remote_code=model.trust_remote_code,
            samples=True,
        )
        return {name: Items.of(values) for name, values in harness.sample_metrics(results).items()}


def control_texts(config: EditEvaluationConfig, tokenizer: LoadedTokenizer) -> TextTokens:
    """Return the control texts in the model's tokens. Raises UserError if there are none."""
    if config.control is None:
        return sample_texts(tokenizer)
    corpus = texts_at(config.control, config.control_text, config.control_examples)
    with columns_set_by("Set evaluation.control_text (--control-text) to one of these, or to a template of them."):
        found = [example.text for example in iter_examples(corpus, Counter()) if example.text is not None]
    texts = encoded_texts(found, tokenizer)
    if not texts.ids:
        raise UserError(f"{config.control}: has no texts to measure bits per byte on: name another control")
    return texts


def bits_of_texts(texts: TextTokens, scorer: Scorer) -> Items:
    """Return the bits of each text, and the bytes that they are for: those of content tokens with a prediction."""
    logprobs = np.concatenate([row.logprobs for row in texts.score(scorer, "control texts")])
    of_text = np.repeat(np.arange(len(texts.ids)), [len(row) for row in texts.ids])
    counted = ~np.isnan(logprobs) & (texts.kinds == TokenKind.CONTENT)
    bits = -logprobs[counted].astype(np.float64) / math.log(2)
    sizes = texts.byte_lengths[counted].astype(np.float64)
    sums = [np.bincount(of_text[counted], each, len(texts.ids)).astype(np.float64) for each in (bits, sizes)]
    return Items(*sums)


def read_contrasts(config: DemonstrationsConfig) -> list[Contrast]:
    """Read rows with a prompt and answers, in the columns of demonstrations; the log has how many others there are.

    Raises UserError if there are none.
    """
    answers = (config.choices,) if config.choices else (config.positive, config.negative)
    source, found, left_out = open_source(FilesSource(urls=(config.url,))), [], Counter[str]()
    for id_, row in demonstration_rows(source, Columns((config.prompt, *answers)), left_out):
        positives, negatives = row_answers(config, id_, row)
        if isinstance(prompt := row.get(config.prompt), str) and positives and negatives:
            found.append(Contrast(prompt, positives, negatives))
        else:
            left_out["no_prompt_or_answers"] += 1
    reasons = counts_in_words(left_out, "no row was read")
    if not found:
        raise UserError(
            f"{config.url}: has no rows with a prompt and answers ({reasons}): check the names of its columns"
        )
    if reasons:
        _log.warning("%s: rows that are left out of the contrasts: %s", masked(config.url), reasons)
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
