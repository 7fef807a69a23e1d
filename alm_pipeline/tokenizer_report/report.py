"""Tokenizers side by side on the same texts: lengths, vocabularies, aligned chunks, and what a transfer would change.

The first tokenizer is the one that others are compared with. All numbers are of the texts that every tokenizer can
represent; what it can't is counted by reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from alm_pipeline.alignment.chunks import AssistantTurns, align
from alm_pipeline.comparison.corpora import cells, document_numbers
from alm_pipeline.config import CorpusConfig
from alm_pipeline.config.fields.repeated import place_of
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.evaluation.bootstrap import paired_intervals
from alm_pipeline.tokenizer_report.encoded import EncodedTexts, Ints, Sample, encode_corpora
from alm_pipeline.tokenizer_report.transfer import transfer_rows
from alm_pipeline.vocabulary.byte_view import tokens_by_spelling
from storage.schemas import ChunkKind

Row = dict[str, Any]


@dataclass(frozen=True)
class TokenizerReport:
    """Tables of plain values, each a list of rows with the same columns."""

    tokenizers: list[Row]
    """of each: its tokens, and how many of these the texts use"""
    lengths: list[Row]
    """of each, over all texts and in each cell: tokens, and bytes per token with an interval"""
    overlap: list[Row]
    """of each pair: the share of the one's tokens that the other has, by bytes; also by uses and bytes of the texts"""
    chunks: list[Row]
    """of the first with each other: the chunks of their alignment"""
    chunk_tokens: list[Row]
    """the number of these chunks by their tokens on both sides"""
    chunk_bytes: list[Row]
    """the number of these chunks by their bytes"""
    transfer: list[Row]
    """what moving the model to each tokenizer would change; empty without a model"""
    left_out: list[Row]
    """texts that are not compared, by reason; `tokenizer` is None for a row without a text"""
    uses: list[Row]
    """of each tokenizer's tokens, how often it is used: for files, since vocabularies are large"""

    def document(self) -> dict[str, list[Row]]:
        """Return all tables by name, but `uses`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "uses"}


def report_tokenizers(
    names: Sequence[str],
    corpora: Sequence[CorpusConfig],
    by: str | None = None,
    *,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> TokenizerReport:
    """Compare tokenizers: folders, hub names or `demo:NAME`. `by` groups the texts, as for `compare_models`.

    With a model, its own tokenizer is the first. Raises UserError as `encode_corpora` does, or for a model whose
    embedding a transfer can't replace, and for `trust_remote_code` without a model.
    """
    if not model:
        refuse_unread("no model is named", trust_remote_code=(trust_remote_code, False))
    names = [model, *(name for name in names if place_of(name) != place_of(model))] if model else list(names)
    sample = encode_corpora(names, corpora, by)
    first, *others = sample.encoded
    pairs = [(other, *_content_chunks(first, other)) for other in others]
    return TokenizerReport(
        tokenizers=[_tokenizer(texts) for texts in sample.encoded],
        lengths=list(_lengths(sample)),
        overlap=[_overlap(texts, other) for texts in sample.encoded for other in sample.encoded if texts is not other],
        chunks=[_chunks(first, *pair) for pair in pairs],
        chunk_tokens=[row for other, own, theirs, _ in pairs for row in _counts_of_tokens(first, other, own, theirs)],
        chunk_bytes=[row for other, _, _, sizes in pairs for row in _counts_of_bytes(first, other, sizes)],
        transfer=transfer_rows(model, sample, trust_remote_code=trust_remote_code) if model else [],
        left_out=list(_left_out(sample)),
        uses=[row for texts in sample.encoded for row in _uses(texts)],
    )


def _tokenizer(texts: EncodedTexts) -> Row:
    ordinary, used = int(texts.ordinary.sum()), int((texts.uses[texts.ordinary] > 0).sum())
    return {
        "tokenizer": texts.name,
        "tokens": ordinary,
        "special_tokens": int((texts.view.special & (texts.view.lengths > 0)).sum()),
        "rows": texts.view.size,
        "mean_bytes": float(texts.view.lengths[texts.ordinary].mean()) if ordinary else None,
        "used": used,
        "never_used": ordinary - used,
    }


def _lengths(sample: Sample) -> Iterator[Row]:
    documents = document_numbers(sample.texts)
    tokens = np.stack([texts.tokens[sample.rows] for texts in sample.encoded])
    for corpus, group, rows in cells(sample.texts):
        sizes, counts = sample.sizes[rows], tokens[:, rows]
        results = paired_intervals(np.broadcast_to(sizes, counts.shape), counts, documents[rows])
        for texts, of_texts, result in zip(sample.encoded, counts.sum(axis=1).tolist(), results, strict=True):
            yield {
                "corpus": corpus,
                "group": group,
                "texts": len(rows),
                "text_bytes": int(sizes.sum()),
                "tokenizer": texts.name,
                "text_tokens": of_texts,
                "bytes_per_token": result.value.value,
                "low": result.value.low,
                "high": result.value.high,
                "relative_tokens": of_texts / int(counts[0].sum()),
            }


def _overlap(texts: EncodedTexts, other: EncodedTexts) -> Row:
    known = tokens_by_spelling(other.view)
    shared = texts.ordinary & np.array([spelling in known for spelling in texts.view.spelling], bool)
    uses, used_bytes = texts.uses * texts.ordinary, texts.uses * texts.ordinary * texts.view.lengths
    return {
        "tokenizer": texts.name,
        "other": other.name,
        "shared": int(shared.sum()),
        "share": _share(int(shared.sum()), int(texts.ordinary.sum())),
        "share_of_uses": _share(int(uses[shared].sum()), int(uses.sum())),
        "share_of_bytes": _share(int(used_bytes[shared].sum()), int(used_bytes.sum())),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _content_chunks(first: EncodedTexts, other: EncodedTexts) -> tuple[Ints, Ints, Ints]:
    """Return of each content chunk of the alignment the first's tokens, the other's, and the bytes."""
    texts = len(first.batch)
    no_turns = AssistantTurns(np.zeros(texts + 1, np.int64), np.zeros(0, np.bool_))
    chunks = align(first.shard, other.shard, no_turns)
    content = chunks.kinds == ChunkKind.CONTENT
    own, theirs, sizes = (
        column[content].astype(np.int64)
        for column in (chunks.teacher_tokens, chunks.student_tokens, chunks.byte_lengths)
    )
    return own, theirs, sizes


def _chunks(first: EncodedTexts, other: EncodedTexts, own: Ints, theirs: Ints, sizes: Ints) -> Row:
    count = len(sizes)
    return {
        "tokenizer": first.name,
        "other": other.name,
        "chunks": count,
        "mean_bytes": float(sizes.mean()) if count else None,
        "median_bytes": float(np.median(sizes)) if count else None,
        "largest_bytes": int(sizes.max(initial=0)),
        "tokens_per_chunk": float(own.mean()) if count else None,
        "other_tokens_per_chunk": float(theirs.mean()) if count else None,
        "one_to_one": _share(int(((own == 1) & (theirs == 1)).sum()), count),
    }


def _counts_of_tokens(first: EncodedTexts, other: EncodedTexts, own: Ints, theirs: Ints) -> Iterator[Row]:
    """Yield a row for each pair of numbers of tokens, most chunks first."""
    if not len(own):
        return
    pairs, counts = np.unique(np.stack([own, theirs]), axis=1, return_counts=True)
    for place in np.argsort(-counts, kind="stable").tolist():
        tokens, other_tokens = pairs[:, place].tolist()
        row = {"tokenizer": first.name, "other": other.name, "tokens": tokens, "other_tokens": other_tokens}
        yield {**row, "chunks": int(counts[place])}


def _counts_of_bytes(first: EncodedTexts, other: EncodedTexts, sizes: Ints) -> Iterator[Row]:
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        yield {"tokenizer": first.name, "other": other.name, "bytes": int(size), "chunks": int(count)}


def _left_out(sample: Sample) -> Iterator[Row]:
    for corpus, reasons in sample.unreadable.items():
        for reason, count in reasons.items():
            yield {"tokenizer": None, "corpus": corpus, "reason": reason, "texts": count}
    for (name, corpus), reasons in sample.not_represented.items():
        for reason, count in reasons.items():
            yield {"tokenizer": name, "corpus": corpus, "reason": str(reason), "texts": count}


def _uses(texts: EncodedTexts) -> Iterator[Row]:
    for id_ in np.flatnonzero(texts.view.lengths > 0).tolist():
        spelling, is_special = texts.view.spelling[id_], bool(texts.view.special[id_])
        yield {
            "tokenizer": texts.name,
            "id": id_,
            "spelling": spelling,
            "text": spelling.decode(errors="replace"),
            "is_special": is_special,
            "uses": int(texts.uses[id_]),
        }
