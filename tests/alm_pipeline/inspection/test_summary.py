"""Summaries of a dataset, compared with loops over plain rows."""

import statistics
import unicodedata
from collections import Counter
from pathlib import Path
from random import Random

import polars as pl
import pytest

from alm_pipeline.inspection import summary
from alm_pipeline.inspection.summary import (
    chunk_lengths,
    coverage,
    dropped_examples,
    largest_chunks,
    summarize_alignments,
)
from alm_pipeline.naming.scripts import CLASSES, byte_classes, is_code
from storage.schemas import ChunkKind
from tests.alm_pipeline.inspection.datasets import Chunk, Row, Side, random_row, write

NAMES = {
    "LATIN ": "Latin",
    "GREEK ": "Greek",
    "CYRILLIC ": "Cyrillic",
    "ARABIC ": "Arabic",
    "HEBREW ": "Hebrew",
    "DEVANAGARI ": "Devanagari",
    "THAI ": "Thai",
    "CJK UNIFIED ": "Han",
    "HIRAGANA ": "Kana",
    "KATAKANA ": "Kana",
    "HANGUL ": "Hangul",
}


def script_of(text: str, k: int) -> str:
    """Return a character's class by its name, independently of its properties."""
    name = unicodedata.name(text[k], "")
    if unicodedata.combining(text[k]) or text[k] == "\ufe0f":
        return script_of(text, k - 1) if k else "other"
    symbol = text[k].isdecimal() or unicodedata.category(text[k])[0] in "PS"
    if text[k] == "🙂" or (symbol and text[k + 1 : k + 2] == "\ufe0f"):
        return "emoji"
    if text[k].isspace() or text[k].isdecimal():
        return "whitespace" if text[k].isspace() else "digits"
    if symbol:
        return "punctuation and symbols"
    return next((script for start, script in NAMES.items() if name.startswith(start)), "other")


def scripts(text: str) -> list[str]:
    """Return the class of each byte."""
    return [script_of(text, k) for k in range(len(text)) for _ in text[k].encode()]


def test_a_letter_has_the_script_that_its_name_begins_with() -> None:
    letters = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code))[0] == "L"]
    named = [(letter, name) for letter in letters for name in NAMES if unicodedata.name(letter, "").startswith(name)]
    assert len(named) > 80_000
    found = byte_classes("".join(letter for letter, _ in named).encode())
    ends = [0]
    for letter, _ in named:
        ends.append(ends[-1] + len(letter.encode()))
    assert [CLASSES[found[at]] for at in ends[:-1]] == [NAMES[name] for _, name in named]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("e\u0301", ["Latin"] * 3),
        ("\u0301e", ["other"] * 2 + ["Latin"]),
        ("👩\u200d🔬🏽", ["emoji"] * 15),
        ("❤\ufe0f❤", ["emoji"] * 6 + ["punctuation and symbols"] * 3),
        ("1\ufe0f\u20e3", ["emoji"] * 7),
        ("🇫🇷", ["emoji"] * 8),
        ("٣½", ["digits"] * 4),
        ("\u3000\t\n\x85", ["whitespace"] * 7),
        ("。+", ["punctuation and symbols"] * 4),
        ("ሀ\x00", ["other"] * 4),
    ],
)
def test_classes_of_other_characters(text: str, names: list[str]) -> None:
    assert [CLASSES[number] for number in byte_classes(text.encode())] == names


CODE = {
    "python": "def read(path):\n    with open(path) as f:\n        return f.readlines()\n",
    "c": 'int main(void)\n{\n    printf("%d", 3);\n    return 0;\n}\n',
    "html": "<div>\n  <p>Hello</p>\n</div>",
    "javascript": "const x = y => y + 1\nexport default x",
}
PROSE = {
    "english": "It was the best of times, it was the worst of times (so he said);\n"
    'but not for long: she left.\n\n"Why?", I asked.\nNo answer.',
    "chinese": "东京是日本的首都。\n它有很多人。",
    "markdown": "# A title\n\n- one thing\n- another, see [here](https://example.org)\n\nSome more words.",
    "blank": "\n\n",
}


@pytest.mark.parametrize("name", [*CODE, *PROSE])
def test_code_is_distinguished_from_prose(name: str) -> None:
    assert is_code({**CODE, **PROSE}[name]) == (name in CODE)


def oracle(rows: list[Row]) -> dict[tuple[str, str], dict[str, object]]:
    """Compute the coverage by loops over bytes and chunks."""
    groups = [("all", "all"), *(("script", name) for name in CLASSES), ("text", "code"), ("text", "prose")]
    sizes: Counter[tuple[str, str]] = Counter()
    aligned: Counter[tuple[str, str]] = Counter()
    chunks: dict[tuple[str, str], list[Chunk]] = {group: [] for group in groups}
    for row in rows:
        text = ("text", "code" if is_code(row.text) else "prose")
        names, start = scripts(row.text), 0
        for name in names:
            sizes.update([("all", "all"), ("script", name), text])
        for chunk in row.chunks:
            inside = names[start : start + chunk.bytes]
            start += chunk.bytes
            if chunk.kind == ChunkKind.CONTENT:
                for name in inside:
                    aligned.update([("all", "all"), ("script", name), text])
                most = max(CLASSES, key=lambda name: (inside.count(name), -CLASSES.index(name)))
                for group in (("all", "all"), ("script", most), text):
                    chunks[group].append(chunk)
    return {group: row_of(sizes[group], aligned[group], chunks[group]) for group in groups}


def row_of(size: int, aligned: int, chunks: list[Chunk]) -> dict[str, object]:
    total, teacher, student = (sum(getattr(c, name) for c in chunks) for name in ("bytes", "teacher", "student"))
    return {
        "bytes": size,
        "aligned_bytes": aligned,
        "share": aligned / size if size else None,
        "chunks": len(chunks),
        "mean_bytes": total / len(chunks) if chunks else None,
        "median_bytes": statistics.median(c.bytes for c in chunks) if chunks else None,
        "teacher_tokens_per_chunk": teacher / len(chunks) if chunks else None,
        "student_tokens_per_chunk": student / len(chunks) if chunks else None,
        "bytes_per_teacher_token": total / teacher if teacher else None,
        "bytes_per_student_token": total / student if student else None,
    }


def some_shards(seed: int) -> list[list[Row]]:
    random = Random(seed)
    return [[random_row(random, f"{shard}-{k}", 50) for k in range(random.randrange(15))] for shard in range(3)]


@pytest.mark.parametrize("seed", range(15))
def test_the_coverage_equals_a_loop(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "_BLOCK_BYTES", 100)
    shards = some_shards(seed)
    found = {(row.pop("by"), row.pop("name")): row for row in coverage(write(tmp_path, shards).url).to_dicts()}
    wanted = oracle([row for rows in shards for row in rows])
    assert list(found) == list(wanted)
    for group, row in wanted.items():
        assert found[group] == pytest.approx(row), group


def test_bytes_of_all_scripts_are_all_bytes(tmp_path: Path) -> None:
    frame = coverage(write(tmp_path, some_shards(1)).url)
    sums = frame.group_by("by").agg(pl.col("bytes", "aligned_bytes", "chunks").sum())
    assert sums.drop("by").n_unique() == 1
    assert sums["bytes"][0] > 0


@pytest.mark.parametrize("seed", range(5))
def test_lengths_and_largest_chunks_equal_a_loop(tmp_path: Path, seed: int) -> None:
    shards = some_shards(seed)
    url = write(tmp_path, shards).url
    chunks = [(shard, row, k) for shard, rows in enumerate(shards) for row in rows for k in range(len(row.chunks))]
    counts = Counter(
        (c.kind.name.lower(), c.bytes, c.teacher, c.student) for _, row, k in chunks for c in [row.chunks[k]]
    )
    lengths = chunk_lengths(url)
    assert {row[:4]: row[4] for row in lengths.iter_rows()} == counts
    assert lengths["chunks"].is_sorted(descending=True)
    content = [(s, row, k) for s, row, k in chunks if row.chunks[k].kind == ChunkKind.CONTENT]
    content.sort(key=lambda found: -found[1].chunks[found[2]].bytes)
    largest = largest_chunks(url, 4)
    assert len(largest) == min(4, len(content))
    for found, (shard, row, k) in zip(largest.to_dicts(), content, strict=False):
        start, chunk = sum(c.bytes for c in row.chunks[:k]), row.chunks[k]
        assert (found["shard"], found["id"], found["start"]) == (shard, row.id, start)
        assert found["end"] == start + chunk.bytes
        assert (found["teacher_tokens"], found["student_tokens"]) == (chunk.teacher, chunk.student)
        assert found["text"] == row.text.encode()[start : found["end"]].decode(errors="replace")


def test_dropped_examples_are_listed_by_side_and_reason(tmp_path: Path) -> None:
    whole = Side([(1, 0, 3)])
    rows = [
        Row("0-0", "abc", whole, whole, [Chunk(1, 1, 3)]),
        Row("0-1", "abc", whole, Side(dropped="too_long"), []),
        Row("0-2", "東京", Side(dropped="changed"), Side(dropped="too_long"), []),
    ]
    more = [Row("1-0", "x", Side(dropped="changed"), Side([(1, 0, 1)]), []), Row("1-1", "", Side(), Side(), [])]
    url = write(tmp_path, [rows, more]).url
    assert dropped_examples(url).rows() == [
        ("alignments", "student: too_long", 1, 3),
        ("alignments", "teacher: changed", 1, 1),
        ("alignments", "teacher: changed, student: too_long", 1, 6),
        ("student", "too_long", 2, 9),
        ("teacher", "changed", 2, 7),
    ]
    total = coverage(url).row(0, named=True)
    assert (total["bytes"], total["aligned_bytes"]) == (13, 3)


def test_an_empty_dataset(tmp_path: Path) -> None:
    found = summarize_alignments(write(tmp_path, [[], []]).url)
    assert found.coverage["bytes"].sum() == 0
    assert found.coverage["share"].null_count() == len(found.coverage)
    assert (len(found.lengths), len(found.largest), len(found.dropped)) == (0, 0, 0)
