"""Compares models and ensembles on the same texts, each with its own tokenizer, without a pipeline's caches."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.comparison.corpora import ComparedText, cells, document_numbers, open_corpora, read_texts
from alm_pipeline.config import CorpusConfig, ScoreConfig
from alm_pipeline.config.fields.repeated import refuse_repeated
from alm_pipeline.ensemble.config import ensemble_file, ensemble_or_model, read_config
from alm_pipeline.ensemble.loading import load_ensemble, local_name
from alm_pipeline.ensemble.logprobs import text_logprobs
from alm_pipeline.evaluation.bits_per_byte import NO_PREDICTION, bits_and_bytes
from alm_pipeline.evaluation.bootstrap import Interval, PairedInterval, paired_intervals
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer, common_forms
from alm_pipeline.runtime.progress import track
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.rows import EncodedBatch
from storage.errors import UserError
from storage.printed.counts import counts_in_words

Float64s = npt.NDArray[np.float64]
Sums = tuple[Float64s, Float64s]
"""[texts] the bits of each text, and the bytes that they are for"""


@dataclass(frozen=True)
class Cell:
    """The texts of one corpus, or of one group of it; of all where `corpus` is None."""

    corpus: str | None
    group: str | None
    texts: int
    text_bytes: int
    bits_per_byte: tuple[PairedInterval, ...]
    """one per model; documents are what is resampled for the intervals. Empty if the texts have no prediction"""

    def rows(self, models: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield a row for each model as plain values; the first model has no difference to itself."""
        cell = {"corpus": self.corpus, "group": self.group, "texts": self.texts, "text_bytes": self.text_bytes}
        none = PairedInterval(Interval(math.nan, None, None), None)
        for name, result in zip(models, self.bits_per_byte or [none] * len(models), strict=True):
            difference = result.difference or none.value
            yield {
                **cell,
                "model": name,
                "bits_per_byte": _plain(result.value.value),
                "low": result.value.low,
                "high": result.value.high,
                "difference": _plain(difference.value),
                "difference_low": difference.low,
                "difference_high": difference.high,
            }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Comparison:
    """The results of several models on the same texts."""

    total: Cell
    """all texts"""
    cells: tuple[Cell, ...]
    """by corpus if there are several, then by corpus and group if there are groups"""
    left_out: dict[str, int]
    """the number of texts that were not compared, by reason, and by corpus if there are several"""

    def rows(self, models: Sequence[str]) -> list[dict[str, Any]]:
        """Return a row for each cell and model as plain values, the cell of all texts first."""
        return [row for cell in (self.total, *self.cells) for row in cell.rows(models)]

    @property
    def bits_per_byte(self) -> tuple[float, ...]:
        """Of all texts, one per model."""
        return tuple(result.value.value for result in self.total.bits_per_byte)


@dataclass(frozen=True)
class _Reader:
    """A model, or a member of an ensemble, and the tokenizer that it is used with."""

    model: ModelReference
    tokenizer_name: str

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        return LoadedTokenizer(self.tokenizer_name)

    def encoder(self) -> ByteEncoder:
        return ByteEncoder(self.tokenizer, self.model.context_length, self.model.vocabulary_rows)


def compare_models(
    models: Sequence[str],
    corpora: Sequence[CorpusConfig],
    score: ScoreConfig | None = None,
    *,
    by: str | None = None,
    trust_remote_code: bool = False,
) -> Comparison:
    """Return each model's bits per byte on those of the corpora's texts that all tokenizers can spell.

    Models are folders, stored students' URLs, hub names, `demo:NAME`, or ensembles' files. An ensemble's file sets
    the precision, the device and `trust_remote_code` of its members. `by` also groups the texts, by a column, by
    `script` or by `file`. Raises UserError if a model is named twice, a file is in two corpora, the tokenizers have no
    text of a corpus in common, or if one contains conversations.
    """
    refuse_repeated(map(ensemble_or_model, models))
    opened = open_corpora(corpora)
    readers = {name: _readers(name, trust_remote_code) for name in models}
    unique = list(dict.fromkeys(chain.from_iterable(readers.values())))
    dropped = {corpus.name: Counter[str]() for corpus in corpora}
    texts = [
        text
        for corpus, source in opened
        for text in read_texts(_fitting(corpus, unique), source, by, dropped[corpus.name])
    ]
    batches = {reader: reader.encoder().encode([text.text for text in texts]) for reader in unique}
    compared = _spelled_by_all(texts, list(batches.values()), dropped)
    sums = [
        _ensemble_sums(name, [texts[row].text for row in compared])
        if ensemble_file(name)
        else _sums(readers[name][0].model, batches[readers[name][0]], compared, score)
        for name in models
    ]
    for reader in unique:
        reader.model.check_unchanged()
        reader.tokenizer.check_unchanged()
    total, *others = _cells([texts[row] for row in compared], sums)
    left_out = {
        reason if len(dropped) == 1 else f"{corpus}: {reason}": count
        for corpus, reasons in dropped.items()
        for reason, count in reasons.items()
    }
    return Comparison(total, tuple(others), left_out)


def _spelled_by_all(
    texts: Sequence[ComparedText], batches: Sequence[EncodedBatch], dropped: dict[str, Counter[str]]
) -> list[int]:
    """Return the rows of texts that no tokenizer dropped. Raises UserError if a corpus has none."""
    reasons = [next(filter(None, row), None) for row in zip(*(batch.dropped for batch in batches), strict=True)]
    for text, reason in zip(texts, reasons, strict=bool(batches)):
        if reason:
            dropped[text.corpus][reason] += 1
    compared = [row for row, reason in enumerate(reasons) if reason is None]
    for name, counts in dropped.items():
        if not any(texts[row].corpus == name for row in compared):
            left_out = counts_in_words(counts)
            raise UserError(f"{name}: contains no text to compare models on (left out: {left_out})")
    return compared


def _cells(texts: Sequence[ComparedText], sums: Sequence[Sums]) -> Iterator[Cell]:
    """Yield the cell of all texts, then those of corpora and groups."""
    sizes, documents = np.array([len(text.text.encode()) for text in texts]), document_numbers(texts)
    bits, counted = (np.stack(part) for part in zip(*sums, strict=True))
    if not (counted.sum(axis=1) > 0).all():
        raise UserError(NO_PREDICTION)
    for corpus, group, rows in cells(texts):
        has_bits = (counted[:, rows].sum(axis=1) > 0).all()
        results = paired_intervals(bits[:, rows], counted[:, rows], documents[rows]) if has_bits else []
        yield Cell(corpus, group, len(rows), int(sizes[rows].sum()), tuple(results))


def _readers(name: str, trust_remote_code: bool) -> list[_Reader]:
    file = ensemble_file(name)
    if file is None:
        folder = local_name(name)
        return [_Reader(ModelReference(folder, trust_remote_code), folder)]
    return [
        _Reader(
            ModelReference(local_name(member.model), member.trust_remote_code),
            local_name(member.tokenizer or member.model),
        )
        for member in read_config(file).members
    ]


def _fitting(corpus: CorpusConfig, readers: Sequence[_Reader]) -> CorpusConfig:
    """Restrict a corpus to texts that fit the shortest context at one byte per token.

    The texts are converted to a form that no tokenizer changes.
    """
    lengths = [length - 8 for length in (reader.model.context_length for reader in readers) if length]
    forms = common_forms(reader.tokenizer for reader in readers) if corpus.normalize == "auto" else corpus.normalize
    return corpus.model_copy(update={"normalize": forms, "max_bytes": min([corpus.byte_limit, *lengths])})


def _ensemble_sums(name: str, texts: Sequence[str]) -> Sums:
    rows = text_logprobs(load_ensemble(name), texts)
    columns = zip(*((row.logprobs, row.byte_lengths, row.kinds) for row in rows), strict=True)
    logprobs, lengths, kinds = map(np.concatenate, columns)
    of_text = np.repeat(np.arange(len(rows)), [len(row.logprobs) for row in rows])
    return bits_and_bytes(logprobs, lengths, kinds, of_text, len(rows))


def _sums(model: ModelReference, batch: EncodedBatch, rows: Sequence[int], score: ScoreConfig | None) -> Sums:
    spans = [slice(batch.offsets[row], batch.offsets[row + 1]) for row in rows]
    ids = [batch.token_ids[span] for span in spans]
    with track(f"score {model.label}", sum(map(len, ids)), "tokens") as advance:
        scores = Scorer.load(model, score or ScoreConfig()).score(ids, advance)
    tokens = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    logprobs = np.concatenate([example.logprobs for example in scores])
    of_text = np.repeat(np.arange(len(rows)), [len(row) for row in ids])
    return bits_and_bytes(logprobs, batch.byte_lengths[tokens], batch.kinds[tokens], of_text, len(rows))
