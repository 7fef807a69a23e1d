"""Looking at alignments: one row a chunk, with the text and both sides' tokens, as a Polars frame."""

import numpy as np
import polars as pl

from storage.columns import list_rows
from storage.dataset import Dataset, open_dataset, read_aligned
from storage.errors import UserError
from storage.schemas import ChunkKind, Kind
from storage.urls import join_url

_COLUMNS = {
    "examples": ("text",),
    "teacher": ("token_ids", "byte_lengths"),
    "student": ("token_ids", "byte_lengths"),
    "alignments": ("teacher_tokens", "student_tokens", "byte_lengths", "kinds"),
}
_SCHEMA = pl.Schema(
    [
        ("id", pl.String()),
        ("start", pl.Int64()),
        ("end", pl.Int64()),
        ("text", pl.String()),
        ("teacher", pl.List(pl.String())),
        ("student", pl.List(pl.String())),
        ("kind", pl.String()),
    ]
)


def chunk_frame(url: str, shard: int = 0, example: str | None = None) -> pl.DataFrame:
    """One row a chunk of a shard of the alignments dataset at `url`, or of one of its examples.

    Columns: `id`, `start` and `end` (bytes of the example's text), `text`, `teacher` and `student` (what each token
    covers; a token that covers no byte as its id in angle brackets), `kind`. Bytes that are no whole characters are
    shown as U+FFFD.
    Raises UserError when the dataset holds no alignments, or the shard or example is not there.
    """
    datasets = _related(url)
    shards = len(datasets["alignments"].complete_manifest().shards)
    if not 0 <= shard < shards:
        raise UserError(f"{url}: there is no shard {shard}; it has {shards}, from 0")
    tables = read_aligned(datasets, shard, _COLUMNS)
    ids = tables["examples"]["id"].to_pylist()
    if example is not None and example not in ids:
        held = f"it has {ids[0]} to {ids[-1]}" if ids else "it is empty"
        raise UserError(f"{url}: shard {shard} has no example {example}; {held}")
    texts = tables["examples"]["text"].to_pylist()
    columns = {
        (name, column): list_rows(tables[name][column])
        for name in ("teacher", "student", "alignments")
        for column in _COLUMNS[name]
    }
    rows = [
        chunk
        for row, id_ in enumerate(ids)
        if example in (None, id_)
        for chunk in _chunks(id_, texts[row].encode(), {key: values[row] for key, values in columns.items()})
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def _related(url: str) -> dict[str, Dataset]:
    """The alignments at the URL, and the datasets that it was made from."""
    alignments = open_dataset(url)
    if alignments.kind != Kind.ALIGNMENTS:
        raise UserError(f"{url}: holds {alignments.kind}, not alignments")
    teacher, student = (
        open_dataset(join_url(alignments.root, Kind.TOKENS, alignments.identity[side]))
        for side in ("teacher_tokens", "student_tokens")
    )
    examples = open_dataset(join_url(alignments.root, Kind.EXAMPLES, teacher.identity["examples"]))
    return {"examples": examples, "teacher": teacher, "student": student, "alignments": alignments}


def _chunks(id_: str, text: bytes, columns: dict[tuple[str, str], np.ndarray]) -> list[tuple[object, ...]]:
    sides = [
        _token_texts(text, columns[side, "token_ids"], columns[side, "byte_lengths"]) for side in ("teacher", "student")
    ]
    ends = np.cumsum(columns["alignments", "byte_lengths"]).tolist()
    token_ends = [np.cumsum(columns["alignments", f"{side}_tokens"]).tolist() for side in ("teacher", "student")]
    starts = [[0, *values[:-1]] for values in (ends, *token_ends)]
    kinds = columns["alignments", "kinds"].tolist()
    return [
        (
            id_,
            starts[0][k],
            ends[k],
            _show(text[starts[0][k] : ends[k]]),
            *(sides[side][starts[side + 1][k] : token_ends[side][k]] for side in (0, 1)),
            ChunkKind(kinds[k]).name.lower(),
        )
        for k in range(len(ends))
    ]


def _token_texts(text: bytes, token_ids: np.ndarray, byte_lengths: np.ndarray) -> list[str]:
    ends = np.cumsum(byte_lengths)
    spans = zip(token_ids.tolist(), (ends - byte_lengths).tolist(), ends.tolist(), strict=True)
    return [_show(text[start:end]) if end > start else f"<{id_}>" for id_, start, end in spans]


def _show(text: bytes) -> str:
    return text.decode(errors="replace")
