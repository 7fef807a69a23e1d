"""A Polars frame with one row per chunk: its text and both sides' tokens.

Everything is computed on whole arrays, since a shard may have millions of chunks. Strings are slices of the shard's
text. Python code builds only the strings that are not slices, and each distinct one once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.alignment.visibility import SEEN_BY, seen_by
from alm_pipeline.inspection.shards import SIDES, Bytes, Ints, Shard, Tokens, read_shard, related
from alm_pipeline.inspection.token_texts import TokenTexts
from storage.columns import flatten_lists
from storage.schemas import ChunkKind

_NAMES = [kind.name.lower() for kind in ChunkKind]
_KINDS = pl.Series(_NAMES, dtype=pl.Enum(_NAMES))


def chunk_frame(url: str, shard: int = 0, example: str | None = None) -> pl.DataFrame:
    """Return one row per chunk of a shard of the alignments dataset at `url`, or of one of its examples.

    Columns: `id`, `turn` and `role` (the message's number and role; null in a plain text and between turns), `start`
    and `end` (bytes of the example's text), `text`, `teacher` and `student` (the text that each token covers; if it
    covers no byte its own text, or its id in angle brackets where its tokenizer is not found), `kind` (content, paired,
    unpaired), `seen_by` (who shows its bytes: both, teacher, student, neither, or partly; null where it has none),
    `assistant`. Bytes that are not whole characters are shown as U+FFFD.
    Raises UserError if the dataset holds no alignments, or the shard or example does not exist.
    """
    content, datasets = read_shard(url, shard, example), related(url)
    chunks, texts = content.chunks, content.texts
    starts = chunks.starts - texts.offsets[chunks.examples]
    turns = content.turns()
    return pl.DataFrame(
        {
            "id": pl.Series(texts.ids, dtype=pl.String).gather(chunks.examples),
            "turn": pl.from_arrow(pa.array(turns, pa.int16(), mask=turns < 0)),
            "role": _roles(content, turns),
            "start": starts,
            "end": starts + chunks.lengths,
            "text": pl.from_arrow(_strings(texts.content, chunks.starts, chunks.lengths)),
            **{side: _token_lists(content, side, TokenTexts(datasets[side])) for side in SIDES},
            "kind": _KINDS.gather(chunks.kinds),
            "seen_by": pl.Series(seen_by(content.visibility()).tolist(), dtype=pl.Enum(SEEN_BY)),
            "assistant": chunks.assistant,
        }
    )


def _roles(shard: Shard, turns: npt.NDArray[np.int16]) -> pl.Series:
    roles, offsets = flatten_lists(shard.tables["teacher"]["roles"])
    places = pa.array(offsets[shard.chunks.examples] + turns, mask=turns < 0)
    return pl.Series(pl.from_arrow(pa.array(roles, pa.large_string()).take(places)))


def _token_lists(shard: Shard, side: str, spelling: TokenTexts) -> pl.Series:
    edges = pa.array(shard.chunks.edges(side))
    texts = _token_texts(shard, shard.sides[side], spelling)
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(edges, texts)))


def _token_texts(shard: Shard, tokens: Tokens, spelling: TokenTexts) -> pa.Array:
    texts = _strings(shard.texts.content, tokens.starts, tokens.lengths)
    return _replace(texts, tokens.lengths == 0, tokens.ids, spelling)


def _strings(text: Bytes, starts: Ints, lengths: Ints) -> pa.Array:
    """Return text[start : start + length] for each, as strings, with U+FFFD for parts of characters."""
    ends = starts + lengths
    # the text is UTF-8, so a slice is too, unless it begins or ends inside a character
    inside = np.append((text & 0xC0) == 0x80, False)
    slices = _slices(text, starts, ends)
    partial = (inside[starts] | inside[ends]) & (lengths > 0)
    return _replace(slices, partial, slices, lambda part: part.decode(errors="replace")).cast(pa.large_string())


def _slices(text: Bytes, starts: Ints, ends: Ints) -> pa.Array:
    """Return text[start:end] for each, as offsets into the text. The slices are in order and do not overlap."""
    gaps = np.flatnonzero(starts[1:] != ends[:-1])
    offsets = np.append(np.insert(starts, gaps + 1, ends[gaps]), ends[-1] if len(ends) else 0)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    tiles = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts) + len(gaps), buffers)
    return (
        tiles.take(pa.array(np.delete(np.arange(len(tiles)), gaps + 1 + np.arange(len(gaps))))) if len(gaps) else tiles
    )


def _replace(texts: pa.Array, where: npt.NDArray[np.bool_], values: Any, show: Callable[[Any], str]) -> pa.Array:
    """Replace the texts in the mask by `show(value)`, which is called once for each distinct value."""
    if not where.any() or not len(texts):
        return texts
    distinct = pa.array(values).filter(pa.array(where)).dictionary_encode()
    shown = pa.array([show(value) for value in distinct.dictionary.to_pylist()]).cast(texts.type)
    return pc.replace_with_mask(texts, pa.array(where), shown.take(distinct.indices))
