"""A summary of a whole alignments dataset: coverage by script, lengths of chunks, the largest, dropped examples.

It reads a shard at a time, and counts a block of its examples at a time, so memory does not grow with the dataset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from alm_pipeline.alignment.counts import bytes_by_role
from alm_pipeline.alignment.shards import reasons_without_chunks
from alm_pipeline.inspection.shards import SIDES, Chunks, Ints, Texts, related
from alm_pipeline.naming.scripts import CLASSES, byte_classes, is_code
from storage.dataset import read_aligned
from storage.schemas import ChunkKind

_COLUMNS = {
    "examples": ("text",),
    # only the number of tokens is needed
    "teacher": ("kinds", "dropped"),
    "student": ("kinds", "dropped"),
    "alignments": ("teacher_tokens", "student_tokens", "byte_lengths", "kinds", "assistant"),
}
_GROUPS = [("all", "all"), *(("script", name) for name in CLASSES), ("text", "code"), ("text", "prose")]
_FIRST_SCRIPT, _CODE, _PROSE = 1, len(_GROUPS) - 2, len(_GROUPS) - 1
_BLOCK_BYTES = 1 << 20
_TEXT_BYTES = 200


@dataclass(frozen=True)
class AlignmentSummary:
    """The frames that `coverage`, `visibility`, `chunk_lengths`, `largest_chunks` and `dropped_examples` return."""

    coverage: pl.DataFrame
    visibility: pl.DataFrame
    lengths: pl.DataFrame
    largest: pl.DataFrame
    dropped: pl.DataFrame


def summarize_alignments(url: str, largest: int = 10) -> AlignmentSummary:
    """Compute all frames in one pass over the dataset. Raises UserError if the URL holds no alignments."""
    first, *others = _collect(
        url, _CoverageCollector(), _LengthCollector(), _LargestCollector(largest), _DropCollector()
    )
    return AlignmentSummary(first, visibility(url), *others)


def visibility(url: str) -> pl.DataFrame:
    """Return who shows the bytes of the aligned examples, as the stage counted them: `seen`, `role`, `bytes`.

    `seen` is a `Visibility` in lower case. Of the bytes, `whole_bytes` are in the `sections` of this role that the
    other side leaves out as a whole. Empty for a dataset of an earlier version. Raises UserError if the URL holds no
    alignments.
    """
    counts = related(url)["alignments"].complete_manifest().counts
    names = ("seen", "role", "bytes", "whole_bytes", "sections")
    rows = [
        (kind.name.lower(), role.role, role.bytes, role.whole_bytes, role.whole_sections)
        for kind, roles in bytes_by_role(counts).items()
        for role in roles
    ]
    texts = dict.fromkeys(names[:2], pl.String)
    return pl.DataFrame(rows, schema=texts | dict.fromkeys(names[2:], pl.Int64), orient="row")


def coverage(url: str, most_bytes: float = np.inf) -> pl.DataFrame:
    """Return how much of the text is in content chunks, which the objective compares, and statistics of these chunks.

    The first row is for `all` the text. Then there is one row per script (`by` = "script"), which counts the bytes of
    its characters, and one row each for code and prose (`by` = "text"), which counts whole examples by
    `scripts.is_code`.
    Columns: `by`, `name`, `bytes` (of all examples, including the dropped ones), `aligned_bytes` (in content chunks),
    `share`, `chunks` (content chunks, each counted for the script of most of its bytes; in a tie, for the first in
    `CLASSES`), their `mean_bytes`, `median_bytes`, `{side}_tokens_per_chunk` and `bytes_per_{side}_token`.
    A ratio is null if its denominator is zero. Only the first examples are read, until they have `most_bytes`. Raises
    UserError if the URL holds no alignments.
    """
    return _collect(url, _CoverageCollector(), most_bytes=most_bytes)[0]


def chunk_lengths(url: str) -> pl.DataFrame:
    """Return the number of `chunks` of each `kind`, `bytes`, `teacher_tokens` and `student_tokens`, most chunks first.

    Raises UserError if the URL holds no alignments.
    """
    return _collect(url, _LengthCollector())[0]


def largest_chunks(url: str, count: int = 10) -> pl.DataFrame:
    """Return the largest content chunks by bytes: `shard`, `id`, `start`, `end`, tokens by side, `text`.

    `text` ends after 200 bytes. Raises UserError if the URL holds no alignments.
    """
    return _collect(url, _LargestCollector(count))[0]


def dropped_examples(url: str) -> pl.DataFrame:
    """Return the number of examples without chunks: `side`, `reason`, `examples`, `bytes`.

    `side` is the dataset that dropped them. For `teacher` and `student`, the reasons are those of the tokens dataset.
    `alignments` counts all examples without chunks, including those that are counted for a side already.
    Raises UserError if the URL holds no alignments.
    """
    return _collect(url, _DropCollector())[0]


@dataclass(frozen=True)
class _ShardView:
    """A shard, as the collectors read it."""

    shard: int
    texts: Texts
    chunks: Chunks
    tables: dict[str, pa.Table]


class _Collector(Protocol):
    def add(self, view: _ShardView) -> None: ...

    def frame(self) -> pl.DataFrame: ...


def _collect(url: str, *collectors: _Collector, most_bytes: float = np.inf) -> list[pl.DataFrame]:
    datasets = related(url)
    for shard in range(len(datasets["alignments"].complete_manifest().shards)):
        tables = read_aligned(datasets, shard, _COLUMNS)
        rows = np.searchsorted(Texts.of(tables["examples"]).offsets, most_bytes, side="right") - 1
        tables = {name: table.slice(0, max(1, int(rows))) for name, table in tables.items()}
        texts = Texts.of(tables["examples"])
        view = _ShardView(shard, texts, Chunks.of(tables["alignments"], texts), tables)
        for collector in collectors:
            collector.add(view)
        most_bytes -= texts.offsets[-1]
        if most_bytes <= 0:
            break
    return [collector.frame() for collector in collectors]


class _CoverageCollector:
    def __init__(self) -> None:
        self.bytes = np.zeros(len(_GROUPS), np.int64)
        self.aligned = np.zeros(len(_GROUPS), np.int64)
        self.chunks = pl.DataFrame(schema=dict.fromkeys(("group", "bytes", *_token_names(), "chunks"), pl.Int64))

    def add(self, view: _ShardView) -> None:
        for start, end in _blocks(view.texts.offsets):
            self._add_block(view, start, end)

    def _add_block(self, view: _ShardView, start: int, end: int) -> None:
        """Count the examples from `start` to `end` (exclusive)."""
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
        """Count the chunks by group and bytes: few rows, from which all statistics follow."""
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
    """Return the median of ascending values with these numbers of occurrences."""
    ends = np.cumsum(counts)
    middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
    return float(values[middle].mean())


def _blocks(offsets: Ints) -> Iterator[tuple[int, int]]:
    """Yield ranges of examples with about `_BLOCK_BYTES` bytes each."""
    start, examples = 0, len(offsets) - 1
    while start < examples:
        end = int(np.searchsorted(offsets, offsets[start] + _BLOCK_BYTES, side="right")) - 1
        end = max(end, start + 1)
        yield start, end
        start = end


def _joined_classes(texts: list[str], sizes: Ints) -> npt.NDArray[np.uint8]:
    """Return the class of each byte of the texts. A NUL between texts separates a mark from the text before."""
    classes = byte_classes("\0".join(texts).encode())
    return np.delete(classes, np.cumsum(sizes)[:-1] + np.arange(len(texts) - 1))


def _content(chunks: Chunks, start: int, end: int) -> Ints:
    """Return the indices of the content chunks of a range of examples."""
    first, last = np.searchsorted(chunks.examples, [start, end])
    indices: Ints = first + np.flatnonzero(chunks.kinds[first:last] == ChunkKind.CONTENT)
    return indices


def _votes(classes: npt.NDArray[np.uint8], starts: Ints, lengths: Ints) -> Ints:
    """Return the number of bytes of each class in each span [spans, classes]."""
    span = np.repeat(np.arange(len(starts)), lengths)
    places = np.arange(len(span)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    keys = span * len(CLASSES) + classes[places]
    return np.bincount(keys, minlength=len(starts) * len(CLASSES)).reshape(len(starts), len(CLASSES))


class _LengthCollector:
    _KEYS = ("kind", "bytes", *(f"{side}_tokens" for side in SIDES))

    def __init__(self) -> None:
        self.counts = pl.DataFrame(schema=dict.fromkeys((*self._KEYS, "chunks"), pl.Int64))

    def add(self, view: _ShardView) -> None:
        chunks = view.chunks
        columns = (chunks.kinds.astype(np.int64), chunks.lengths, *(chunks.tokens[side] for side in SIDES))
        counts = pl.DataFrame(dict(zip(self._KEYS, columns, strict=True))).group_by(self._KEYS).len("chunks")
        self.counts = pl.concat([self.counts, counts.cast(pl.Int64)]).group_by(self._KEYS).sum()

    def frame(self) -> pl.DataFrame:
        names = {int(kind): kind.name.lower() for kind in ChunkKind}
        counts = self.counts.sort("chunks", *self._KEYS, descending=[True, *[False] * len(self._KEYS)])
        return counts.with_columns(pl.col("kind").replace_strict(names, return_dtype=pl.Enum(names.values())))


class _LargestCollector:
    def __init__(self, count: int) -> None:
        self.count = count
        plain = {"start": pl.Int64, "end": pl.Int64, **dict.fromkeys(_token_names(), pl.Int64), "text": pl.String}
        self.rows = pl.DataFrame(schema={"shard": pl.Int64, "id": pl.String, **plain})

    def add(self, view: _ShardView) -> None:
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


def _beginning(view: _ShardView, chunk: int) -> str:
    start, length = view.chunks.starts[chunk], view.chunks.lengths[chunk]
    return bytes(view.texts.content[start : start + min(length, _TEXT_BYTES)]).decode(errors="replace")


class _DropCollector:
    def __init__(self) -> None:
        self.rows = pl.DataFrame(
            schema={"side": pl.String, "reason": pl.String, "examples": pl.Int64, "bytes": pl.Int64}
        )

    def add(self, view: _ShardView) -> None:
        sizes = np.diff(view.texts.offsets)
        reasons = {side: view.tables[side]["dropped"] for side in SIDES}
        reasons["alignments"] = pa.array(reasons_without_chunks(view.tables), pa.string())
        parts = [
            pl.DataFrame({"reason": pl.Series(reason, dtype=pl.String), "bytes": sizes})
            .drop_nulls()
            .select(pl.lit(side).alias("side"), "reason", pl.lit(1, pl.Int64).alias("examples"), "bytes")
            for side, reason in reasons.items()
        ]
        self.rows = pl.concat([self.rows, *parts]).group_by("side", "reason", maintain_order=True).sum()

    def frame(self) -> pl.DataFrame:
        return self.rows.sort("side", "reason")
