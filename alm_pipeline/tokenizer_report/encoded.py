"""Texts in the tokens of several tokenizers, and which of them all of these can represent."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.alignment.chunks import ShardTokens
from alm_pipeline.alignment.shards import shard_tokens
from alm_pipeline.comparison.corpora import ComparedText, open_corpora, read_texts
from alm_pipeline.config import CorpusConfig
from alm_pipeline.config.fields.repeated import refuse_repeated
from alm_pipeline.ensemble.loading import local_name
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.runtime.progress import track
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.rows import EncodedBatch
from alm_pipeline.vocabulary.byte_view import ByteView
from storage.errors import UserError
from storage.printed.counts import counts_in_words
from storage.schemas import TokenKind

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_TEXTS_AT_ONCE = 200


@dataclass(frozen=True)
class EncodedTexts:
    """N texts in the tokens of one tokenizer. The special tokens around a text are not counted."""

    name: str
    view: ByteView
    batch: EncodedBatch
    compared: Bools
    """[N] whether every tokenizer of the report can represent the text: only these count"""

    @cached_property
    def counted(self) -> Bools:
        """[tokens] the content tokens of compared texts."""
        counted: Bools = (self.batch.kinds == TokenKind.CONTENT) & self.compared[self._texts]
        return counted

    @property
    def _texts(self) -> Ints:
        return np.repeat(np.arange(len(self.batch)), np.diff(self.batch.offsets))

    @cached_property
    def tokens(self) -> Ints:
        """[N] the number of tokens of each text; 0 if it is not compared."""
        return np.bincount(self._texts[self.counted], minlength=len(self.batch)).astype(np.int64)

    @cached_property
    def uses(self) -> Ints:
        """[V] how often each token is used in the compared texts."""
        return np.bincount(self.batch.token_ids[self.counted], minlength=self.view.size).astype(np.int64)

    @cached_property
    def ordinary(self) -> Bools:
        """[V] the tokens that stand for bytes of a text."""
        ordinary: Bools = ~self.view.special & (self.view.lengths > 0)
        return ordinary

    @cached_property
    def shard(self) -> ShardTokens:
        """The tokens as the alignment takes them, without texts that are not compared."""
        tokens = shard_tokens(pa.table(self.batch.columns()))
        return ShardTokens(**{**vars(tokens), "dropped": tokens.dropped | ~self.compared})


@dataclass(frozen=True)
class Sample:
    """The texts of the corpora, in the tokens of each tokenizer."""

    texts: list[ComparedText]
    """those that are compared"""
    sizes: Ints
    """their bytes"""
    rows: Ints
    """which of all N texts they are"""
    encoded: list[EncodedTexts]
    """one per tokenizer"""
    tokenizers: Mapping[str, LoadedTokenizer]
    unreadable: dict[str, Counter[str]]
    """the rows of each corpus that have no text, by reason"""
    not_represented: dict[tuple[str, str], Counter[str]]
    """the texts of each tokenizer and corpus that it can't represent, by reason"""


def encode_corpora(names: Sequence[str], corpora: Sequence[CorpusConfig], by: str | None = None) -> Sample:
    """Encode the corpora's texts with each tokenizer.

    Raises UserError if two names are of one tokenizer, a file is in two corpora, a tokenizer's bytes are not known
    exactly, or all texts of a corpus are such that some tokenizer can't represent them.
    """
    refuse_repeated(names, "tokenizer")
    tokenizers = {name: LoadedTokenizer(local_name(name)) for name in names}
    encoders = {name: ByteEncoder(tokenizer) for name, tokenizer in tokenizers.items()}
    unreadable = {corpus.name: Counter[str]() for corpus in corpora}
    opened = open_corpora(corpora)
    texts = [text for corpus, source in opened for text in read_texts(corpus, source, by, unreadable[corpus.name])]
    batches = {name: _encode(name, encoder, texts) for name, encoder in encoders.items()}
    compared = np.array(
        [not any(row) for row in zip(*(batch.dropped for batch in batches.values()), strict=True)], bool
    )
    _require_texts(texts, compared, batches, unreadable)
    for tokenizer in tokenizers.values():
        tokenizer.check_unchanged()
    rows = np.flatnonzero(compared)
    return Sample(
        [texts[row] for row in rows],
        np.array([len(texts[row].text.encode()) for row in rows], np.int64),
        rows,
        [EncodedTexts(name, encoders[name].view, batch, compared) for name, batch in batches.items()],
        tokenizers,
        unreadable,
        _not_represented(texts, batches),
    )


def _encode(name: str, encoder: ByteEncoder, texts: Sequence[ComparedText]) -> EncodedBatch:
    batches = []
    with track(f"encode by {name}", sum(len(text.text.encode()) for text in texts), "B") as advance:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = [text.text for text in texts[start : start + _TEXTS_AT_ONCE]]
            batches.append(encoder.encode(part))
            advance(sum(len(text.encode()) for text in part))
    return EncodedBatch.join(batches)


def _not_represented(
    texts: Sequence[ComparedText], batches: Mapping[str, EncodedBatch]
) -> dict[tuple[str, str], Counter[str]]:
    counts: dict[tuple[str, str], Counter[str]] = {}
    for name, batch in batches.items():
        for text, reason in zip(texts, batch.dropped, strict=True):
            if reason:
                counts.setdefault((name, text.corpus), Counter())[reason] += 1
    return counts


def _require_texts(
    texts: Sequence[ComparedText],
    compared: Bools,
    batches: Mapping[str, EncodedBatch],
    unreadable: Mapping[str, Counter[str]],
) -> None:
    counts = _not_represented(texts, batches)
    for corpus, lost in unreadable.items():
        if not any(is_compared for text, is_compared in zip(texts, compared, strict=True) if text.corpus == corpus):
            reasons = [
                f"by {name}, {counts_in_words(found)}"
                for (name, of_corpus), found in counts.items()
                if of_corpus == corpus
            ]
            raise UserError(
                f"{corpus}: contains no text that every tokenizer can represent (rows without a text: "
                f"{counts_in_words(lost)}; not represented: {'; '.join(reasons) or 'none'})"
            )
