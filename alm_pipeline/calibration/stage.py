"""The stage QUESTIONS → CHOICE SCORES: the log-probability of every choice, one dataset for each model or point.

Shard k is made from shard k, with the same questions in the same order. Everything after it is arithmetic on these
numbers: other measures, bins or readings score nothing again.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.calibration.choices import EncodedQuestion, tokens_hash
from alm_pipeline.calibration.questions import stored_questions
from alm_pipeline.calibration.report.measures import ScoredChoices
from alm_pipeline.calibration.report.resampling import cluster_numbers
from alm_pipeline.calibration.scored_models import EnsembleOfModels, QuestionScorer, ScoredModel
from alm_pipeline.config import Dtype
from alm_pipeline.runtime.progress import track
from storage.columns import join_rows
from storage.dataset import Dataset, Manifest, read_aligned
from storage.errors import UserError
from storage.schemas import Kind

STAGE_VERSION = 1
EncodedShards = list[list[EncodedQuestion]]
"""The questions of each shard, as a model reads them."""


class ChoiceScoring:
    """The scoring of stored questions with one model."""

    def __init__(
        self, questions: Dataset, model: ScoredModel, dtype: Dtype, encodings: dict[object, EncodedShards] | None = None
    ) -> None:
        """Encodes the questions, unless an ensemble reads them: what is read is part of what scores are named by.

        Models that read alike share `encodings`.
        """
        self.questions, self.model = questions, model
        self._encodings = {} if encodings is None else encodings
        identity = {"stage_version": STAGE_VERSION, "questions": questions.name, **model.identity()}
        if not isinstance(model, EnsembleOfModels):  # whose members have their own dtype, and are loaded to encode
            read = tokens_hash([question for shard in self._encoded for question in shard])
            identity |= {"read": read, "dtype": dtype}
        notes = {"configuration": {"model": model.label, "questions": questions.label}}
        label = f"{questions.label}-{model.label}"
        self.scores = Dataset(questions.root, Kind.CHOICE_SCORES, label, identity, provenance=notes)

    @property
    def _encoded(self) -> EncodedShards:
        key = self.model.reads
        if key not in self._encodings:
            encoder = self.model.encoder()
            shards = (stored_questions(self.questions, shard) for shard in range(self._shards))
            self._encodings[key] = [[encoder.question(question) for question in shard] for shard in shards]
        return self._encodings[key]

    @property
    def _shards(self) -> int:
        return len(self.questions.complete_manifest().shards)

    def is_complete(self) -> bool:
        return self.scores.manifest() is not None

    def run(self, scorer: Callable[[], QuestionScorer]) -> Manifest:
        """Score every shard that is not scored yet; the model is loaded, by `scorer`, only if there is one."""
        if manifest := self.scores.manifest():
            return manifest
        with self.scores.being_written():
            if missing := self.scores.missing(range(self._shards)):
                self._score(missing, scorer())
            return self.scores.finish(self._shards)

    def _score(self, missing: Sequence[int], scorer: QuestionScorer) -> None:
        total = sum(len(self._encoded[shard]) for shard in missing)
        with track(f"score {self.model.label}", total, "questions") as advance:
            for shard in missing:
                encoded = self._encoded[shard]
                ids = self.questions.read_shard(shard, ["id"])["id"]
                logprobs = _choice_logprobs(encoded, scorer, ids.to_pylist())
                self.model.check_unchanged()
                self.scores.write_shard(
                    shard, {"id": ids, **_columns(encoded, logprobs, self.model.weight)}, *_counts(encoded)
                )
                advance(len(encoded))


def _choice_logprobs(
    encoded: Sequence[EncodedQuestion], scorer: QuestionScorer, ids: Sequence[str]
) -> list[npt.NDArray[np.float64]]:
    """Return the log-probabilities of each question's choices; empty for one that can't be scored."""
    logprobs = scorer(encoded)
    for id_, values in zip(ids, logprobs, strict=True):
        if not np.isfinite(values).all():
            raise UserError(
                f"question {id_}: the log-probability of a choice is {values[~np.isfinite(values)][0]}: compute in "
                "float32 or bfloat16, or leave the question out"
            )
    return logprobs


def _columns(
    encoded: Sequence[EncodedQuestion], logprobs: Sequence[npt.NDArray[np.float64]], weight: float | None
) -> dict[str, object]:
    tokens, lengths = (
        join_rows(
            [np.array([getattr(each, name) for each in question.choices], np.int64) for question in encoded], kind
        )
        for name, kind in (("scored", pa.int32()), ("bytes", pa.int32()))
    )
    return {
        "weight": [weight] * len(encoded),
        "logprobs": join_rows(logprobs, pa.float64()),
        "tokens": tokens,
        "byte_lengths": lengths,
        "dropped": [question.dropped for question in encoded],
    }


def _counts(encoded: Sequence[EncodedQuestion]) -> tuple[dict[str, int], dict[str, int]]:
    choices = sum(len(question.choices) for question in encoded)
    tokens = sum(len(choice.ids) for question in encoded for choice in question.choices)
    straddled = sum(question.straddled for question in encoded)
    dropped = Counter(question.dropped for question in encoded if question.dropped)
    return {"choices": choices, "tokens": tokens, "prompt_ends_within_a_token": straddled}, dict(dropped)


def answered_by_all(
    asked: Dataset, columns: Sequence[str], scorings: Sequence[Dataset], scored: Sequence[str]
) -> tuple[list[pa.Table], list[int], Counter[str]]:
    """Return (tables of what was asked and of each model's answers, rows that no model dropped, counts of the others).

    `columns` are read of what was asked, and `scored` of each model's answers. A row that several models dropped is
    counted once, by one of the reasons.
    """
    names = ["asked", *(f"scores {number}" for number in range(len(scorings)))]
    datasets = dict(zip(names, (asked, *scorings), strict=True))
    wanted = {name: columns if name == "asked" else scored for name in names}
    shards = [read_aligned(datasets, shard, wanted) for shard in range(len(asked.complete_manifest().shards))]
    tables = [pa.concat_tables([shard[name] for shard in shards]) for name in names]
    dropped = zip(*(table["dropped"].to_pylist() for table in tables[1:]), strict=True)
    reasons = [set(row) - {None} for row in dropped]
    kept = [number for number, found in enumerate(reasons) if not found]
    return tables, kept, Counter(sorted(found)[0] for found in reasons if found)


class ScoredQuestions:
    """The questions that all of several models scored, with each model's scores of their choices."""

    def __init__(self, questions: Dataset, scorings: Sequence[Dataset]) -> None:
        """Reads all shards. Raises UserError if no question was scored by all."""
        tables, kept, self.left_out = answered_by_all(questions, ["answer", "cluster"], scorings, _SCORES)
        if not kept:
            raise UserError(f"{questions.url}: no question was scored by all models (left out: {dict(self.left_out)})")
        asked, *scored = (table.take(kept).to_pylist() for table in tables)
        self.clusters = cluster_numbers([row["cluster"] for row in asked])
        answers = np.array([row["answer"] for row in asked], np.int64)
        self.scores = [_choices(rows, answers) for rows in scored]

    def __len__(self) -> int:
        return len(self.clusters)


_SCORES = ("logprobs", "tokens", "byte_lengths", "dropped")


def _choices(rows: Sequence[dict[str, list[float]]], answers: npt.NDArray[np.int64]) -> ScoredChoices:
    most = max(len(row["logprobs"]) for row in rows)

    def padded(name: str, fill: float) -> npt.NDArray[np.float64]:
        return np.array([[*row[name], *[fill] * (most - len(row[name]))] for row in rows])

    tokens, lengths = (padded(name, 1).astype(np.int64) for name in ("tokens", "byte_lengths"))
    return ScoredChoices(padded("logprobs", -np.inf), tokens, lengths, answers)
