"""Turns a summary into tables to print, each with a title, a header and rows of text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import polars as pl

from alm_pipeline.inspection.shards import SIDES
from alm_pipeline.inspection.summary import AlignmentSummary
from storage.printed.shares import percent

SEEN = {
    "aligned": "both, aligned",
    "uncompared": "both, not compared",
    "teacher_only": "only the teacher",
    "student_only": "only the student",
    "unseen": "neither",
}
Printed = tuple[str, list[str], list[list[str]]]
_PATTERN_ROWS = 8
_TEXT_CHARACTERS = 40


def plain(summary: AlignmentSummary) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the four frames as plain values."""
    return {field.name: getattr(summary, field.name).to_dicts() for field in fields(summary)}


def tables(summary: AlignmentSummary) -> Iterator[Printed]:
    """Yield the tables that have rows."""
    candidates = (
        ("coverage by script, and of code and prose", _COVERAGE, _coverage(summary.coverage)),
        ("who sees the bytes", ["seen", "role", "bytes", "share", "left out whole"], _visibility(summary.visibility)),
        ("content chunks by tokens, teacher : student", ["tokens", "chunks", "share"], _patterns(summary.lengths)),
        ("content chunks by bytes", ["bytes", "chunks", "share"], _bytes(summary.lengths)),
        (
            "largest content chunks",
            ["shard", "example", "bytes", "teacher : student", "text"],
            _largest(summary.largest),
        ),
        ("dropped examples", ["by", "reason", "examples", "bytes"], _dropped(summary.dropped)),
    )
    return (table for table in candidates if table[2])


_COVERAGE = [
    *("", "bytes", "aligned", "chunks", "bytes per chunk", "median", "tokens per chunk, teacher", "student"),
    *("bytes per token, teacher", "student"),
]


def _coverage(frame: pl.DataFrame) -> list[list[str]]:
    numbers = ["mean_bytes", "median_bytes"]
    numbers += [f"{side}_tokens_per_chunk" for side in SIDES] + [f"bytes_per_{side}_token" for side in SIDES]
    return [
        [
            row["name"],
            f"{row['bytes']:,}",
            percent(row["aligned_bytes"], row["bytes"]),
            f"{row['chunks']:,}",
            *("" if row[name] is None else f"{row[name]:.2f}" for name in numbers),
        ]
        for row in frame.filter(pl.col("bytes") > 0).iter_rows(named=True)
    ]


def _visibility(frame: pl.DataFrame) -> list[list[str]]:
    total = int(frame["bytes"].sum())
    return [
        [SEEN[seen], role, f"{size:,}", percent(size, total), f"{sections:,} ({whole:,} bytes)" if sections else ""]
        for seen, role, size, whole, sections in frame.iter_rows()
    ]


def _patterns(lengths: pl.DataFrame) -> list[list[str]]:
    """Return the most frequent numbers of tokens, and all others together."""
    keys = [f"{side}_tokens" for side in SIDES]
    counts = _content(lengths).group_by(keys).agg(pl.col("chunks").sum())
    counts = counts.sort("chunks", *keys, descending=[True, False, False])
    rows = [(f"{teacher}:{student}", chunks) for teacher, student, chunks in counts.head(_PATTERN_ROWS).iter_rows()]
    rest = sum(counts["chunks"][_PATTERN_ROWS:])
    return _shares([*rows, ("others", rest)] if rest else rows)


def _bytes(lengths: pl.DataFrame) -> list[list[str]]:
    """Count chunks by powers of two: 1, 2, 3-4, 5-8, …"""
    counts: Counter[int] = Counter()
    for size, chunks in _content(lengths).select("bytes", "chunks").iter_rows():
        counts[(size - 1).bit_length()] += chunks
    ranges = [(2 ** (power - 1) + 1 if power else 1, 2**power, chunks) for power, chunks in sorted(counts.items())]
    return _shares([(f"{low}-{high}" if low < high else f"{low}", chunks) for low, high, chunks in ranges])


def _content(lengths: pl.DataFrame) -> pl.DataFrame:
    return lengths.filter((pl.col("kind") == "content") & (pl.col("bytes") > 0))


def _shares(rows: list[tuple[str, int]]) -> list[list[str]]:
    total = sum(chunks for _, chunks in rows)
    return [[name, f"{chunks:,}", f"{chunks / total:.2%}"] for name, chunks in rows]


def _largest(frame: pl.DataFrame) -> list[list[str]]:
    return [
        [
            str(row["shard"]),
            row["id"],
            f"{row['start']}-{row['end']}",
            f"{row['teacher_tokens']}:{row['student_tokens']}",
            _shortened(repr(row["text"])),
        ]
        for row in frame.iter_rows(named=True)
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_CHARACTERS else f"{text[: _TEXT_CHARACTERS - 1]}…"


def _dropped(frame: pl.DataFrame) -> list[list[str]]:
    return [[side, reason, f"{examples:,}", f"{size:,}"] for side, reason, examples, size in frame.iter_rows()]
