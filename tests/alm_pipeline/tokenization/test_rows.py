"""Batches of encoded examples: joined, surrounded by special tokens, and written as columns."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.tokenization.rows import EncodedBatch, EncodedExample, Uncovered, surround
from storage.schemas import SCHEMAS, Kind, TokenKind


def example(*ids: int, uncovered: tuple[tuple[int, int], ...] = (), roles: tuple[str, ...] = ()) -> EncodedExample:
    at, sizes = np.array(uncovered, np.int64).reshape(-1, 2).T
    return EncodedExample(
        np.array(ids, np.int32),
        np.array(ids, np.int32) % 5,
        np.zeros(len(ids), np.uint8),
        np.full(len(ids), -1, np.int16),
        Uncovered(at, sizes),
        roles,
        tuple(range(len(roles))),
    )


def plain(row: EncodedExample | str) -> object:
    if isinstance(row, str):
        return row
    arrays = (row.token_ids, row.byte_lengths, row.kinds, row.turns, row.uncovered.at, row.uncovered.bytes)
    return *(array.tolist() for array in arrays), row.roles, row.turn_bytes


ROWS: list[EncodedExample | str] = [
    example(7, 8, 9),
    "changed_by_nfc",
    example(),
    example(3, uncovered=((0, 2), (1, 4)), roles=("user",)),
]


def test_a_batch_returns_its_rows() -> None:
    batch = EncodedBatch.of(ROWS)
    assert len(batch) == 4
    assert [plain(batch.example(row)) for row in range(4)] == [plain(row) for row in ROWS]


@given(st.lists(st.lists(st.sampled_from(range(4)), max_size=4), max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_joined_batches_are_the_batch_of_all_rows(parts: list[list[int]]) -> None:
    joined = EncodedBatch.join([EncodedBatch.of([ROWS[index] for index in part]) for part in parts])
    whole = [ROWS[index] for part in parts for index in part]
    assert len(joined) == len(whole)
    assert [plain(joined.example(row)) for row in range(len(joined))] == [plain(row) for row in whole]


def test_columns_have_the_schema() -> None:
    table = pa.table({"id": list("abcd"), **EncodedBatch.of(ROWS).columns()}, schema=SCHEMAS[Kind.TOKENS])
    assert table["token_ids"].to_pylist() == [[7, 8, 9], [], [], [3]]
    assert table["uncovered_at"].to_pylist() == [[], [], [], [0, 1]]
    assert table["uncovered_bytes"].to_pylist() == [[], [], [], [2, 4]]
    assert table["roles"].to_pylist() == [[], [], [], ["user"]]
    assert table["turn_bytes"].to_pylist() == [[], [], [], [0]]
    assert table["dropped"].to_pylist() == [None, "changed_by_nfc", None, None]
    assert EncodedBatch.of([]).columns()["uncovered_at"].to_pylist() == []


def test_gaps_between_spans() -> None:
    gaps = Uncovered.between(np.array([2, 5, 9]), np.array([5, 6, 10]), 12)
    assert (gaps.at.tolist(), gaps.bytes.tolist()) == ([0, 2, 3], [2, 3, 2])
    nothing = Uncovered.between(np.zeros(0, np.int64), np.zeros(0, np.int64), 4)
    assert (nothing.at.tolist(), nothing.bytes.tolist()) == ([0], [4])


def test_special_tokens_around_each_row() -> None:
    batch = surround(EncodedBatch.of(ROWS), before=[100, 101], after=[102, 103])
    row = batch.example(0)
    assert isinstance(row, EncodedExample)
    assert row.token_ids.tolist() == [100, 101, 7, 8, 9, 102, 103]
    assert row.byte_lengths.tolist() == [0, 0, 2, 3, 4, 0, 0]
    kinds = [TokenKind.BEGIN_OF_TEXT, TokenKind.TEMPLATE, 0, 0, 0, TokenKind.TEMPLATE, TokenKind.END_OF_TEXT]
    assert row.kinds.tolist() == kinds
    assert batch.example(1) == "changed_by_nfc"
    empty, last = batch.example(2), batch.example(3)
    assert isinstance(empty, EncodedExample)
    assert isinstance(last, EncodedExample)
    assert empty.token_ids.tolist() == [100, 101, 102, 103]
    assert (last.token_ids.tolist(), last.uncovered.at.tolist()) == ([100, 101, 3, 102, 103], [2, 3])
    assert len(batch.turns) == batch.offsets[-1]


def test_a_dropped_row_loses_its_tokens() -> None:
    batch = EncodedBatch.of([example(1, 2), example(3, uncovered=((0, 1),)), example(4)])
    cut = EncodedBatch(**{**vars(batch), "dropped": [None, "unknown_token", None]})
    kept = surround(cut, before=[], after=[9])
    assert kept.token_ids.tolist() == [1, 2, 9, 4, 9]
    assert kept.uncovered == {}
    assert kept.columns()["token_ids"].to_pylist() == [[1, 2, 9], [], [4, 9]]


def test_without_special_tokens_the_batch_is_unchanged() -> None:
    batch = EncodedBatch.of([example(1), example()])
    assert surround(batch, before=[], after=[]) is batch
