"""The frame of chunks, compared with loops over plain rows."""

from pathlib import Path
from random import Random

import polars as pl
import pytest

from alm_pipeline.inspection.frame import chunk_frame
from storage.errors import UserError
from storage.schemas import ChunkKind
from tests.alm_pipeline.inspection.datasets import SIDES, Chunk, Row, Side, random_row, write
from tests.corpora import text_examples

COLUMNS = ["id", "turn", "role", "start", "end", "text", "teacher", "student", "kind", "seen_by", "assistant"]


def expected(row: Row) -> list[dict[str, object]]:
    """Return the rows of the frame, computed byte by byte and token by token."""
    text, start = row.text.encode(), 0
    tokens = {side: iter(getattr(row, side).tokens) for side in SIDES}
    found = []
    for chunk in row.chunks:
        end = start + chunk.bytes
        shown = {"id": row.id, "start": start, "end": end, "text": text[start:end].decode(errors="replace")}
        for side in SIDES:
            spans = [next(tokens[side]) for _ in range(getattr(chunk, side))]
            shown[side] = [text[a:b].decode(errors="replace") if b > a else f"<{id_}>" for id_, a, b in spans]
        seen = seen_by(row, start, end)
        found.append({**shown, "kind": chunk.kind.name.lower(), "seen_by": seen, "assistant": chunk.assistant})
        start = end
    return found


def seen_by(row: Row, start: int, end: int) -> str | None:
    """Return who sees the bytes, by looking at each."""
    shown = {side: {byte for _, a, b in getattr(row, side).tokens for byte in range(a, b)} for side in SIDES}
    found = {tuple(byte in shown[side] for side in SIDES) for byte in range(start, end)}
    names = {(True, True): "both", (True, False): "teacher", (False, True): "student", (False, False): "neither"}
    return (names[found.pop()] if len(found) == 1 else "partly") if found else None


@pytest.mark.parametrize("seed", range(30))
def test_the_frame_equals_a_loop(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    shards = [[random_row(random, f"{shard}-{k}", 60) for k in range(random.randrange(12))] for shard in range(2)]
    url = write(tmp_path, shards).url
    for shard, rows in enumerate(shards):
        frame = chunk_frame(url, shard)
        assert frame.columns == COLUMNS
        assert frame.drop("turn", "role").to_dicts() == [chunk for row in rows for chunk in expected(row)]
        for row in rows[:3]:
            one = chunk_frame(url, shard, row.id)
            assert one.drop("turn", "role").to_dicts() == expected(row)


def test_tokens_after_uncovered_bytes_are_at_their_place(tmp_path: Path) -> None:
    teacher, student = Side([(7, 1, 3), (8, 5, 6)]), Side([(9, 1, 6)])
    chunks = [Chunk(0, 0, 1, ChunkKind.UNPAIRED), Chunk(2, 1, 5), Chunk(0, 0, 1, ChunkKind.UNPAIRED)]
    rows = [
        Row("0-0", "abcdefg", teacher, student, chunks),
        Row("0-1", "xy", Side([(1, 0, 2)]), Side([(1, 0, 2)]), [Chunk(1, 1, 2)]),
    ]
    frame = chunk_frame(write(tmp_path, [rows]).url)
    assert frame["text"].to_list() == ["a", "bcdef", "g", "xy"]
    assert frame["teacher"].to_list() == [[], ["bc", "f"], [], ["xy"]]
    assert frame["student"].to_list() == [[], ["bcdef"], [], ["xy"]]


def test_turns_and_roles_of_a_conversation(tmp_path: Path) -> None:
    teacher = Side([(2, 0, 0), (3, 0, 2), (4, 2, 2), (5, 2, 4)], turns=[-1, 0, 0, 1])
    student = Side([(6, 0, 2), (7, 2, 2), (8, 2, 4), (9, 4, 4)], turns=[0, 1, 1, 1])
    chunks = [
        Chunk(1, 0, 0, ChunkKind.UNPAIRED),
        Chunk(1, 1, 2),
        Chunk(1, 1, 0, ChunkKind.PAIRED),
        Chunk(1, 1, 2, assistant=True),
        Chunk(0, 1, 0, ChunkKind.UNPAIRED, True),
    ]
    plain = Row("0-0", "x", Side([(1, 0, 1)]), Side([(1, 0, 1)]), [Chunk(1, 1, 1)], [])
    chat = Row("0-1", "hiyo", teacher, student, chunks, ["user", "assistant"])
    frame = chunk_frame(write(tmp_path, [[plain, chat]]).url)
    assert frame["turn"].to_list() == [None, None, 0, 0, 1, 1]
    assert frame["role"].to_list() == [None, None, "user", "user", "assistant", "assistant"]
    assert frame["assistant"].to_list() == [False] * 4 + [True] * 2
    assert frame["kind"].to_list() == ["content", "unpaired", "content", "paired", "content", "unpaired"]


def test_nothing_to_show(tmp_path: Path) -> None:
    empty = Row("0-0", "", Side(), Side(), [])
    dropped = Row("0-1", "abc", Side([(1, 0, 3)]), Side(dropped="too_long"), [])
    url = write(tmp_path, [[empty, dropped], []]).url
    for frame in (chunk_frame(url), chunk_frame(url, example="0-1"), chunk_frame(url, shard=1)):
        assert frame.shape == (0, len(COLUMNS))
        assert (frame.schema["teacher"], frame.schema["turn"]) == (pl.List(pl.String), pl.Int16)
        assert (frame.schema["text"], frame.schema["role"]) == (pl.String, pl.String)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"shard": 2}, "has no shard 2: it has 2, numbered from 0"),
        ({"shard": -1}, "has no shard -1"),
        ({"example": "0-9"}, "shard 0 has no example 0-9: it has 0-0 to 0-1"),
        ({"shard": 1, "example": "0-0"}, "shard 1 has no example 0-0: it is empty"),
    ],
)
def test_a_shard_or_example_that_does_not_exist(tmp_path: Path, choice: dict[str, int | str], message: str) -> None:
    url = write(tmp_path, [[Row(f"0-{k}", "", Side(), Side(), []) for k in range(2)], []]).url
    with pytest.raises(UserError, match=message):
        chunk_frame(url, **choice)  # type: ignore[arg-type]


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    examples = text_examples(tmp_path, [["a"]])
    with pytest.raises(UserError, match="holds examples, not alignments"):
        chunk_frame(examples.url)
    with pytest.raises(UserError, match="not a complete dataset"):
        chunk_frame(f"{tmp_path}/alignments/none")
