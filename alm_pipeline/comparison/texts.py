"""Models and ensembles side by side on the same texts, each with its own tokenizer, without a pipeline's caches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from alm_pipeline.config import CorpusConfig, FilesSource, ScoreConfig
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.ensemble.config import ensemble_file, read_config
from alm_pipeline.ensemble.loading import load_ensemble, local_name
from alm_pipeline.ensemble.scoring import score_texts, text_bits_per_byte
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
    """What models make of the same texts."""

    bits_per_byte: tuple[float, ...]
    """of each model"""
    texts: int
    text_bytes: int
    left_out: dict[str, int]
    """texts by the reason for which they were not compared"""


@dataclass(frozen=True)
class _Reader:
    """A model, or a member of an ensemble, and the tokenizer that reads for it."""

    model: ModelReference
    tokenizer_name: str

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        return LoadedTokenizer(self.tokenizer_name)


def texts_at(url: str, text: str, examples: int) -> CorpusConfig:
    """The first texts of files, as a corpus to compare models on; `text` is a column or a template of columns."""
    return CorpusConfig(name="texts", source=FilesSource(urls=(url,)), text=text, max_examples=examples)


def compare_models(
    models: Sequence[str],
    corpus: CorpusConfig,
    score: ScoreConfig | None = None,
    *,
    trust_remote_code: bool = False,
) -> Comparison:
    """Bits per byte of each model, on the corpus's texts that all of their tokenizers can spell.

    Models are folders, stored students' URLs, hub names, `demo:NAME`, or ensembles' files; an ensemble's file has its
    members' precision, device and trust. Raises UserError when there is no such text, or the corpus holds
    conversations.
    """
    if corpus.messages is not None:
        raise UserError("corpus.messages: models are compared on texts: set corpus.text")
    readers = {name: _readers(name, trust_remote_code) for name in models}
    every = list(dict.fromkeys(chain.from_iterable(readers.values())))
    dropped: Counter[str] = Counter()
    texts = [example.text for example in iter_examples(_fitting(corpus, every), dropped) if example.text is not None]
    batches = {reader: ByteEncoder(reader.tokenizer, reader.model.context_length).encode(texts) for reader in every}
    reasons = [
        next(filter(None, row), None) for row in zip(*(batch.dropped for batch in batches.values()), strict=True)
    ]
    dropped.update(filter(None, reasons))
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise UserError(f"{corpus.name}: no text to compare models on (left out: {dict(dropped) or 'none'})")
    bits = [
        _ensemble_bits(name, [texts[row] for row in kept])
        if ensemble_file(name)
        else _bits(readers[name][0].model, batches[readers[name][0]], kept, score)
        for name in models
    ]
    return Comparison(tuple(bits), len(kept), sum(len(texts[row].encode()) for row in kept), dict(dropped))


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
    """Texts in a form that all tokenizers leave as it is, and that fit the shortest context, a byte a token."""
    lengths = [length - 8 for length in (reader.model.context_length for reader in readers) if length]
    forms = common_forms(reader.tokenizer for reader in readers) if corpus.normalize == "auto" else corpus.normalize
    return corpus.model_copy(update={"normalize": forms, "max_bytes": min([corpus.max_bytes, *lengths])})


def _ensemble_bits(name: str, texts: Sequence[str]) -> float:
    return text_bits_per_byte(score_texts(load_ensemble(name), texts))


def _bits(model: ModelReference, batch: EncodedBatch, kept: Sequence[int], score: ScoreConfig | None) -> float:
    rows = [slice(batch.offsets[row], batch.offsets[row + 1]) for row in kept]
    ids = [batch.token_ids[row] for row in rows]
    with track(f"score {model.name}", sum(map(len, ids)), "tokens") as advance:
        scores = Scorer.load(model, score or ScoreConfig()).score(ids, advance)
    tokens = np.concatenate([np.arange(row.start, row.stop) for row in rows])
    logprobs = np.concatenate([example.logprobs for example in scores])
    return bits_per_byte(logprobs, batch.byte_lengths[tokens], batch.kinds[tokens])
