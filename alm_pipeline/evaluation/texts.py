"""Models side by side on the same texts, each with its own tokenizer, without a pipeline's caches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alm_pipeline.config import CorpusConfig, ScoreConfig
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.evaluation.bits_per_byte import bits_per_byte
from alm_pipeline.models import common_forms, context_length, load_tokenizer
from alm_pipeline.progress import track
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.tokenization.encoding import ByteEncoder
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


def compare_models(models: Sequence[str], corpus: CorpusConfig, score: ScoreConfig | None = None) -> Comparison:
    """Bits per byte of each model, on the corpus's texts that all of their tokenizers can spell.

    Raises UserError when there is no such text, or the corpus holds conversations.
    """
    if corpus.messages is not None:
        raise UserError("corpus.messages: models are compared on texts: set corpus.text")
    dropped: Counter[str] = Counter()
    texts = [example.text for example in iter_examples(_fitting(corpus, models), dropped) if example.text is not None]
    batches = [ByteEncoder(load_tokenizer(model), context_length(model)).encode(texts) for model in models]
    reasons = [next(filter(None, row), None) for row in zip(*(batch.dropped for batch in batches), strict=True)]
    dropped.update(filter(None, reasons))
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise UserError(f"{corpus.name}: no text to compare models on (left out: {dict(dropped) or 'none'})")
    bits = tuple(_bits(model, batch, kept, score) for model, batch in zip(models, batches, strict=True))
    return Comparison(bits, len(kept), sum(len(texts[row].encode()) for row in kept), dict(dropped))


def _fitting(corpus: CorpusConfig, models: Sequence[str]) -> CorpusConfig:
    """Texts in a form that all tokenizers leave as it is, and that fit the shortest context, a byte a token."""
    lengths = [length - 8 for length in map(context_length, models) if length]
    forms = common_forms(models) if corpus.normalize == "auto" else corpus.normalize
    return corpus.model_copy(update={"normalize": forms, "max_bytes": min([corpus.max_bytes, *lengths])})


def _bits(model: str, batch: EncodedBatch, kept: Sequence[int], score: ScoreConfig | None) -> float:
    rows = [slice(batch.offsets[row], batch.offsets[row + 1]) for row in kept]
    ids = [batch.token_ids[row] for row in rows]
    with track(f"score {model}", sum(map(len, ids)), "tokens") as advance:
        scores = Scorer.load(model, score or ScoreConfig()).score(ids, advance)
    tokens = np.concatenate([np.arange(row.start, row.stop) for row in rows])
    logprobs = np.concatenate([example.logprobs for example in scores])
    return bits_per_byte(logprobs, batch.byte_lengths[tokens], batch.kinds[tokens])
