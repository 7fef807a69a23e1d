"""Compares models and ensembles on the same texts, each with its own tokenizer, without a pipeline's caches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from pydantic import ValidationError

from alm_pipeline.config import CorpusConfig, FilesSource, ScoreConfig
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.formats.layouts import resolve_layout
from alm_pipeline.corpus.sources import open_source
from alm_pipeline.ensemble.config import ensemble_file, read_config
from alm_pipeline.ensemble.loading import load_ensemble, local_name
from alm_pipeline.ensemble.logprobs import text_bits_per_byte, text_logprobs
from alm_pipeline.evaluation.bits_per_byte import bits_per_byte
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer, common_forms
from alm_pipeline.runtime.progress import track
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.rows import EncodedBatch
from storage.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """The results of several models on the same texts."""

    bits_per_byte: tuple[float, ...]
    """one per model"""
    texts: int
    text_bytes: int
    left_out: dict[str, int]
    """the number of texts that were not compared, by reason"""


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


def texts_at(url: str, text: str, examples: int) -> CorpusConfig:
    """Return the first texts of files as a corpus for comparisons; `text` is a column or a template of columns.

    Raises UserError if the template is wrong.
    """
    try:
        return CorpusConfig(
            name="texts", source=FilesSource(urls=(url,)), layout="text", text=text, max_examples=examples
        )
    except ValidationError as error:
        raise UserError(f"these texts can't be read:\n{wrong_fields(error, CorpusConfig)}") from error


def compare_models(
    models: Sequence[str],
    corpus: CorpusConfig,
    score: ScoreConfig | None = None,
    *,
    trust_remote_code: bool = False,
) -> Comparison:
    """Return each model's bits per byte on those of the corpus's texts that all tokenizers can spell.

    Models are folders, stored students' URLs, hub names, `demo:NAME`, or ensembles' files. An ensemble's file sets
    the precision, the device and `trust_remote_code` of its members. Raises UserError if the tokenizers have no text in
    common, or if the corpus contains conversations.
    """
    corpus = resolve_layout(corpus, open_source(corpus.source))
    if corpus.layout not in ("text", "prompt_completion"):
        raise UserError(f"corpus.layout {corpus.layout}: models are compared on texts: set corpus.text instead")
    readers = {name: _readers(name, trust_remote_code) for name in models}
    unique = list(dict.fromkeys(chain.from_iterable(readers.values())))
    dropped: Counter[str] = Counter()
    texts = [example.text for example in iter_examples(_fitting(corpus, unique), dropped) if example.text is not None]
    batches = {reader: reader.encoder().encode(texts) for reader in unique}
    reasons = [
        next(filter(None, row), None) for row in zip(*(batch.dropped for batch in batches.values()), strict=True)
    ]
    dropped.update(filter(None, reasons))
    compared = [row for row, reason in enumerate(reasons) if reason is None]
    if not compared:
        raise UserError(f"{corpus.name}: contains no text to compare models on (left out: {dict(dropped) or 'none'})")
    bits = [
        _ensemble_bits(name, [texts[row] for row in compared])
        if ensemble_file(name)
        else _bits(readers[name][0].model, batches[readers[name][0]], compared, score)
        for name in models
    ]
    for reader in unique:
        reader.model.check_unchanged()
        reader.tokenizer.check_unchanged()
    return Comparison(tuple(bits), len(compared), sum(len(texts[row].encode()) for row in compared), dict(dropped))


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


def _ensemble_bits(name: str, texts: Sequence[str]) -> float:
    return text_bits_per_byte(text_logprobs(load_ensemble(name), texts))


def _bits(model: ModelReference, batch: EncodedBatch, rows: Sequence[int], score: ScoreConfig | None) -> float:
    spans = [slice(batch.offsets[row], batch.offsets[row + 1]) for row in rows]
    ids = [batch.token_ids[span] for span in spans]
    with track(f"score {model.label}", sum(map(len, ids)), "tokens") as advance:
        scores = Scorer.load(model, score or ScoreConfig()).score(ids, advance)
    tokens = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    logprobs = np.concatenate([example.logprobs for example in scores])
    return bits_per_byte(logprobs, batch.byte_lengths[tokens], batch.kinds[tokens])
