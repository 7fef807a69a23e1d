"""Tokens of texts that a model wrote: its own where they are known, and an end only where it ended the text.

A text that has an end gets the token that ends a text or turn, on both sides, so that stopping is a position that is
compared. One that was cut at the most tokens has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.conversations.sections import Conversation, first_section
from alm_pipeline.corpus.formats.tools import Arguments
from alm_pipeline.tokenization.completions import with_completions, with_learned_turns
from alm_pipeline.tokenization.encoder import ByteEncoder, Dropped
from alm_pipeline.tokenization.rows import EncodedBatch, EncodedExample
from storage.kinds.rollouts import FINISHED
from storage.schemas import TokenKind

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class WrittenEnds:
    """How the N examples of a slice end, and the writer's own tokens of them."""

    finish_reasons: Sequence[str]
    ids: Sequence[Sequence[int]] | None
    """None where the writer has another tokenizer, or where its tokens are not known"""

    def at(self, rows: slice) -> "WrittenEnds":
        """Return those of some rows."""
        return WrittenEnds(self.finish_reasons[rows], self.ids and self.ids[rows])

    def is_finished(self, row: int) -> bool:
        return self.finish_reasons[row] == FINISHED


def encode_written(
    encoder: ByteEncoder,
    ends: WrittenEnds,
    completions: Sequence[int],
    texts: Sequence[str],
    conversations: Sequence[Conversation] | None,
    arguments: Sequence[Arguments | None] | None,
) -> EncodedBatch:
    """Return the tokens of written texts or conversations, of which what was written is learned.

    `completions` are where that begins: bytes of texts, or messages.
    """
    if conversations is None:
        batch = encoder.encode(texts) if ends.ids is None else _own_texts(encoder, texts, ends)
        return with_completions(_ended_texts(batch, ends, encoder), completions)
    if ends.ids is None:
        batch = _cut_conversations(encoder.encode_conversations(conversations, arguments), ends)
    else:
        given: Sequence[Any] = [None] * len(conversations) if arguments is None else arguments
        rows = zip(conversations, given, map(_array, ends.ids), strict=True)
        batch = EncodedBatch.of([encoder.conversation_of_ids(*row) for row in rows])
    sections = [first_section(*row) for row in zip(conversations, completions, strict=True)]
    return with_learned_turns(batch, sections)


def _array(ids: Sequence[int]) -> Ids:
    return np.array(ids, np.int32)


def _own_texts(encoder: ByteEncoder, texts: Sequence[str], ends: WrittenEnds) -> EncodedBatch:
    """Return the texts with the writer's tokens, without an end."""
    assert ends.ids is not None
    ids = [_array(row)[: len(row) - ends.is_finished(number)] for number, row in enumerate(ends.ids)]
    return encoder.texts_of_ids(texts, ids)


def _ended_texts(batch: EncodedBatch, ends: WrittenEnds, encoder: ByteEncoder) -> EncodedBatch:
    """Return the texts with an end exactly where they have one: the writer's own, or the tokenizer's."""
    end = encoder.tokenizer.fast.eos_token_id
    rows: list[EncodedExample | str] = []
    for number in range(len(batch)):
        example = batch.example(number)
        if isinstance(example, str):
            rows.append(example)
            continue
        own = ends.ids[number][-1] if ends.ids is not None else end
        example = _without_end(example)
        rows.append(_with_end(example, own) if ends.is_finished(number) and own is not None else example)
    return _within_context(EncodedBatch.of(rows), encoder)


def _within_context(batch: EncodedBatch, encoder: ByteEncoder) -> EncodedBatch:
    """Drop what one more token made too long."""
    most = encoder.max_tokens or np.inf
    too_long = (np.diff(batch.offsets) > most).tolist()
    if not any(too_long):
        return batch
    rows = [Dropped.OVER_CONTEXT if long else batch.example(row) for row, long in enumerate(too_long)]
    return EncodedBatch.of(rows)


def _cut_conversations(batch: EncodedBatch, ends: WrittenEnds) -> EncodedBatch:
    """Return the conversations, of which those that were cut end with their last content."""
    examples = [batch.example(row) for row in range(len(batch))]
    return EncodedBatch.of(
        [
            example if isinstance(example, str) or ends.is_finished(row) else _without_end(example)
            for row, example in enumerate(examples)
        ]
    )


def _without_end(example: EncodedExample) -> EncodedExample:
    """Return the example without the tokens after its last one that covers a byte."""
    covering = np.flatnonzero(example.byte_lengths)
    return _first(example, int(covering[-1]) + 1 if len(covering) else 0)


def _first(example: EncodedExample, count: int) -> EncodedExample:
    columns = ("token_ids", "byte_lengths", "kinds", "turns")
    uncovered = replace(example.uncovered, at=example.uncovered.at.clip(max=count))
    return replace(example, uncovered=uncovered, **{name: getattr(example, name)[:count] for name in columns})


def _with_end(example: EncodedExample, id_: int) -> EncodedExample:
    return replace(
        example,
        token_ids=_appended(example.token_ids, id_),
        byte_lengths=_appended(example.byte_lengths, 0),
        kinds=_appended(example.kinds, TokenKind.END_OF_TEXT),
        turns=_appended(example.turns, -1),
    )


def _appended(values: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
    return np.append(values, np.array([value], values.dtype))
