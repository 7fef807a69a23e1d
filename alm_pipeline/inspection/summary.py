"""What the chunks of a whole alignments dataset are like: coverage by script, lengths, the largest, what was dropped.

Shard by shard, and within one a block of examples at a time, so memory does not grow with the dataset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.inspection.scripts import CLASSES, byte_classes, is_code
from alm_pipeline.inspection.shards import SIDES, Chunks, Ints, Texts, related
from storage.dataset import read_aligned
from storage.schemas import ChunkKind

_COLUMNS = {
    "examples": ("text",),
    # of the tokens only how many there are is asked
    "teacher": ("kinds", "dropped"),
    "student": ("kinds", "dropped"),
    "alignments": ("teacher_tokens", "student_tokens", "byte_lengths", "kinds", "assistant"),
}
_GROUPS = [("all", "all"), *(("script", name) for name in CLASSES), ("text", "code"), ("text", "prose")]
_FIRST_SCRIPT, _CODE, _PROSE = 1, len(_GROUPS) - 2, len(_GROUPS) - 1
_BLOCK_BYTES = 1 << 20
_TEXT_BYTES = 200


@dataclass(frozen=True)
class Summary:
    """Frames as `coverage`, `chunk_lengths`, `largest_chunks` and `dropped_examples` return them."""

    coverage: pl.DataFrame
    lengths: pl.DataFrame
    largest: pl.DataFrame
    dropped: pl.DataFrame


def summarize(url: str, largest: int = 10) -> Summary:
    """Everything below, reading the dataset once. Raises UserError when the URL holds no alignments."""
    return Summary(*_collect(url, _Coverage(), _Lengths(), _Largest(largest), _Dropped()))


def coverage(url: str) -> pl.DataFrame:
    """How much of the text is in chunks that the objective compares (content), and what these are like, by script.

    A row for `all` the text; one a script (`by` = "script"), where each byte counts for its character's; and the same
    text once more by what its example is (`by` = "text"), code or prose: see `scripts.is_code`.
    Columns: `by`, `name`, `bytes` (of all examples, the dropped ones too), `aligned_bytes` (in content chunks),
    `share`; `chunks` (content chunks; each of the script that most of its bytes have, of equal ones the first in
    `CLASSES`), their `mean_bytes`, `median_bytes`, `{side}_tokens_per_chunk` and `bytes_per_{side}_token`.
    Null where there is nothing to divide by. Raises UserError when the URL holds no alignments.
    """
    return _collect(url, _Coverage())[0]


def chunk_lengths(url: str) -> pl.DataFrame:
    """How many chunks are how long: `kind`, `bytes`, `teacher_tokens`, `student_tokens`, `chunks`, most chunks first.

    Raises UserError when the URL holds no alignments.
    """
    return _collect(url, _Lengths())[0]


def largest_chunks(url: str, count: int = 10) -> pl.DataFrame:
    """The content chunks of most bytes, the largest first: `shard`, `id`, `start`, `end`, tokens by side, `text`.

    Of the text the first 200 bytes. Raises UserError when the URL holds no alignments.
    """
    return _collect(url, _Largest(count))[0]


def dropped_examples(url: str) -> pl.DataFrame:
    """Examples without chunks: `side`, `reason`, `examples`, `bytes`.

    `side` is where they were dropped: teacher, student (their tokens datasets say why) or alignments, for examples that
    have no tokens on a side, for whatever reason; those dropped on a side are counted there again.
    Raises UserError when the URL holds no alignments.
    """
    return _collect(url, _Dropped())[0]


@dataclass(frozen=True)
class _View:
    """What a summary is made of: a shard."""

    shard: int
    texts: Texts
    chunks: Chunks
    tables: dict[str, pa.Table]


class _Collector(Protocol):
    def add(self, view: _View) -> None: ...

    def frame(self) -> pl.DataFrame: ...


def _collect(url: str, *collectors: _Collector) -> list[pl.DataFrame]:
    datasets = related(url)
    for shard in range(len(datasets["alignments"].complete_manifest().shards)):
        tables = read_aligned(datasets, shard, _COLUMNS)
        texts = Texts.of(tables["examples"])
        view = _View(shard, texts, Chunks.of(tables["alignments"], texts), tables)
        for collector in collectors:
            collector.add(view)
    return [collector.frame() for collector in collectors]


class _Coverage:
    def __init__(self) -> None:
        self.bytes = np.zeros(len(_GROUPS), np.int64)
        self.aligned = np.zeros(len(_GROUPS), np.int64)
        self.chunks = pl.DataFrame(schema=dict.fromkeys(("group", "bytes", *_token_names(), "chunks"), pl.Int64))

    def add(self, view: _View) -> None:
        for start, end in _blocks(view.texts.offsets):
            self._add_block(view, start, end)

    def _add_block(self, view: _View, start: int, end: int) -> None:
        """Count the examples from `start` to `end`."""
        texts = view.tables["examples"]["text"].slice(start, end - start).to_pylist()
        sizes = np.diff(view.texts.offsets[start : end + 1])
        classes = _joined_classes(texts, sizes)
        code = np.array([_CODE if is_code(text) else _PROSE for text in texts])
        chosen = _content(view.chunks, start, end)
        lengths = view.chunks.lengths[chosen]
        votes = _votes(classes, view.chunks.starts[chosen] - view.texts.offsets[start], lengths)
        self._add_bytes(np.bincount(classes, minlength=len(CLASSES)), sizes, code, self.bytes)
        chunk_code = code[view.chunks.examples[chosen] - start]
        self._add_bytes(votes.sum(0), lengths, chunk_code, self.aligned)
        groups = [np.zeros(len(chosen), np.int64), _FIRST_SCRIPT + votes.argmax(1), chunk_code]
        self._add_chunks(groups, lengths, [view.chunks.tokens[side][chosen] for side in SIDES])

    @staticmethod
    def _add_bytes(by_class: Ints, sizes: Ints, code: Ints, total: Ints) -> None:
        total[0] += sizes.sum()
        total[_FIRST_SCRIPT:_CODE] += by_class
        total += np.bincount(code, sizes, len(_GROUPS)).astype(np.int64)

    def _add_chunks(self, groups: list[Ints], lengths: Ints, tokens: list[Ints]) -> None:
        """Group the chunks by all their groups and their bytes: few rows, from which all else follows."""
        columns = {"bytes": lengths, **dict(zip(_token_names(), tokens, strict=True)), "chunks": np.ones_like(lengths)}
        parts = [pl.DataFrame({"group": group, **columns}) for group in groups]
        self.chunks = pl.concat([self.chunks, *parts]).group_by("group", "bytes").sum()

    def frame(self) -> pl.DataFrame:
        names = pl.DataFrame(_GROUPS, schema=["by", "name"], orient="row")
        sizes = pl.DataFrame({"bytes": self.bytes, "aligned_bytes": self.aligned})
        rows = pl.concat([names, sizes], how="horizontal").with_row_index("group")
        rows = rows.with_columns(_ratio("aligned_bytes", "bytes").alias("share"), pl.col("group").cast(pl.Int64))
        rows = rows.join(self._chunk_columns(), on="group", how="left", maintain_order="left").drop("group")
        return rows.with_columns(pl.col("chunks").fill_null(0))

    def _chunk_columns(self) -> pl.DataFrame:
        medians = {
            group: _median(rows["bytes"].to_numpy(), rows["chunks"].to_numpy())
            for (group,), rows in self.chunks.sort("bytes").group_by("group")
        }
        totals = self.chunks.with_columns(bytes=pl.col("bytes") * pl.col("chunks")).group_by("group").sum()
        return totals.select(
            "group",
            "chunks",
            _ratio("bytes", "chunks").alias("mean_bytes"),
            pl.col("group").replace_strict(medians, return_dtype=pl.Float64).alias("median_bytes"),
            *(_ratio(name, "chunks").alias(f"{name}_per_chunk") for name in _token_names()),
            *(_ratio("bytes", f"{side}_tokens").alias(f"bytes_per_{side}_token") for side in SIDES),
        )


def _token_names() -> list[str]:
    return [f"{side}_tokens" for side in SIDES]


def _ratio(part: str, whole: str) -> pl.Expr:
    return pl.when(pl.col(whole) > 0).then(pl.col(part) / pl.col(whole))


def _median(values: Ints, counts: Ints) -> float:
    """Of ascending values that occur so many times."""
    ends = np.cumsum(counts)
    middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
    return float(values[middle].mean())


def _blocks(offsets: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of examples of about `_BLOCK_BYTES` each."""
    start, examples = 0, len(offsets) - 1
    while start < examples:
        end = int(np.searchsorted(offsets, offsets[start] + _BLOCK_BYTES, side="right")) - 1
        end = max(end, start + 1)
        yield start, end
        start = end


def _joined_classes(texts: list[str], sizes: Ints) -> npt.NDArray[np.uint8]:
    """The class of each byte of the texts. A NUL between them keeps a mark from the text before."""
    classes = byte_classes("\0".join(texts).encode())
    return np.delete(classes, np.cumsum(sizes)[:-1] + np.arange(len(texts) - 1))


def _content(chunks: Chunks, start: int, end: int) -> Ints:
    """The content chunks of a range of examples."""
    first, last = np.searchsorted(chunks.examples, [start, end])
    found: Ints = first + np.flatnonzero(chunks.kinds[first:last] == ChunkKind.CONTENT)
    return found


def _votes(classes: npt.NDArray[np.uint8], starts: Ints, lengths: Ints) -> Ints:
    """[spans, classes] how many bytes of each span are of each class."""
    span = np.repeat(np.arange(len(starts)), lengths)
    places = np.arange(len(span)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    keys = span * len(CLASSES) + classes[places]
    return np.bincount(keys, minlength=len(starts) * len(CLASSES)).reshape(len(starts), len(CLASSES))


class _Lengths:
    _KEYS = ("kind", "bytes", *(f"{side}_tokens" for side in SIDES))

    def __init__(self) -> None:
        self.counts = pl.DataFrame(schema=dict.fromkeys((*self._KEYS, "chunks"), pl.Int64))

    def add(self, view: _View) -> None:
        chunks = view.chunks
        columns = (chunks.kinds.astype(np.int64), chunks.lengths, *(chunks.tokens[side] for side in SIDES))
        counts = pl.DataFrame(dict(zip(self._KEYS, columns, strict=True))).group_by(self._KEYS).len("chunks")
        self.counts = pl.concat([self.counts, counts.cast(pl.Int64)]).group_by(self._KEYS).sum()

    def frame(self) -> pl.DataFrame:
        names = {int(kind): kind.name.lower() for kind in ChunkKind}
        counts = self.counts.sort("chunks", *self._KEYS, descending=[True, *[False] * len(self._KEYS)])
        return counts.with_columns(pl.col("kind").replace_strict(names, return_dtype=pl.Enum(names.values())))


class _Largest:
    def __init__(self, count: int) -> None:
        self.count = count
        plain = {"start": pl.Int64, "end": pl.Int64, **dict.fromkeys(_token_names(), pl.Int64), "text": pl.String}
        self.rows = pl.DataFrame(schema={"shard": pl.Int64, "id": pl.String, **plain})

    def add(self, view: _View) -> None:
        chunks, texts = view.chunks, view.texts
        content = np.flatnonzero(chunks.kinds == ChunkKind.CONTENT)
        chosen = content[np.argsort(-chunks.lengths[content], kind="stable")[: self.count]]
        starts = chunks.starts[chosen] - texts.offsets[chunks.examples[chosen]]
        columns = {
            "shard": np.full(len(chosen), view.shard),
            "id": pl.Series(texts.ids.take(pa.array(chunks.examples[chosen])), dtype=pl.String),
            "start": starts,
            "end": starts + chunks.lengths[chosen],
            **{f"{side}_tokens": chunks.tokens[side][chosen] for side in SIDES},
            "text": pl.Series([_beginning(view, chunk) for chunk in chosen], dtype=pl.String),
        }
        length = pl.col("end") - pl.col("start")
        rows = pl.concat([self.rows, pl.DataFrame(columns)])
        self.rows = rows.sort(length, descending=True, maintain_order=True).head(self.count)

    def frame(self) -> pl.DataFrame:
        return self.rows


def _beginning(view: _View, chunk: int) -> str:
    start, length = view.chunks.starts[chunk], view.chunks.lengths[chunk]
    return bytes(view.texts.content[start : start + min(length, _TEXT_BYTES)]).decode(errors="replace")


class _Dropped:
    def __init__(self) -> None:
        self.rows = pl.DataFrame(
            schema={"side": pl.String, "reason": pl.String, "examples": pl.Int64, "bytes": pl.Int64}
        )

    def add(self, view: _View) -> None:
        sizes = np.diff(view.texts.offsets)
        reasons = {side: view.tables[side]["dropped"] for side in SIDES}
        empty = [pc.equal(pc.list_value_length(view.tables[side]["kinds"]), 0) for side in SIDES]
        reasons["alignments"] = pc.if_else(pc.or_(*empty), "without_tokens_on_a_side", None)
        parts = [
            pl.DataFrame({"reason": pl.Series(reason, dtype=pl.String), "bytes": sizes})
            .drop_nulls()
            .select(pl.lit(side).alias("side"), "reason", pl.lit(1, pl.Int64).alias("examples"), "bytes")
            for side, reason in reasons.items()
        ]
        self.rows = pl.concat([self.rows, *parts]).group_by("side", "reason", maintain_order=True).sum()

    def frame(self) -> pl.DataFrame:
        return self.rows.sort("side", "reason")
