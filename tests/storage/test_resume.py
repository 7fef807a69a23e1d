"""A run that is killed between any two writes, and run again, writes the files of an unbroken run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import dataset as dataset_module
from storage import urls
from storage.columns import join_rows
from storage.dataset import _holds_rows, encode_parquet
from storage.schemas import SCHEMAS, Kind
from storage.urls import file_sizes, join_url, overwrite, read_bytes, remove
from tests.storage.samples import columns, dataset, write

SHARDS = 3
PUBLISHED = 2 * SHARDS + 1  # each shard and its record, then the manifest


class _Killed(BaseException):
    pass


def _dying_at(call: int) -> Callable[[str, bytes], bytes]:
    calls = iter(range(PUBLISHED))

    def publish(url: str, content: bytes) -> bytes:
        if next(calls) == call:
            raise _Killed
        return urls.publish(url, content)

    return publish


def _files(root: str) -> dict[str, bytes | None]:
    return {name: read_bytes(join_url(root, name)) for name in file_sizes(root)}


@pytest.mark.parametrize("call", range(PUBLISHED))
def test_a_broken_run_is_resumed(root: str, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    write(dataset(root + "/unbroken"), SHARDS)
    with monkeypatch.context() as patch:
        patch.setattr(dataset_module, "publish", _dying_at(call))
        with pytest.raises(_Killed):
            write(dataset(root + "/broken"), SHARDS)
    assert len(_files(root + "/broken")) == call
    assert dataset(root + "/broken").manifest() is None
    write(dataset(root + "/broken"), SHARDS)
    assert len(_files(root + "/broken")) == PUBLISHED
    assert _files(root + "/broken") == _files(root + "/unbroken")


def test_a_resumed_run_redoes_only_shards_without_a_record(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "publish", _dying_at(3))  # shard 1 without its record
    with pytest.raises(_Killed):
        write(dataset(root), SHARDS)
    again: list[str] = []
    publish: Any = urls.publish
    monkeypatch.setattr(dataset_module, "publish", lambda url, content: again.append(url) or publish(url, content))
    write(dataset(root), SHARDS)
    assert [url.rsplit("/", 1)[-1] for url in again] == [
        "shard-00001.parquet",
        "shard-00001.json",
        "shard-00002.parquet",
        "shard-00002.json",
        "manifest.json",
    ]


def test_two_runs_at_once_do_no_harm(root: str) -> None:
    first, second = dataset(root), dataset(root)
    alone = write(dataset(root + "/alone"), 2)
    # the second overtakes the first, which has just seen that shard 0 does not exist
    assert first.record(0) is None
    assert write(second, 2) == alone
    first.write_shard(0, first.read_shard(0).to_pydict(), {"tokens": 3}, {"too_long": 0})
    assert write(first, 2) == second.manifest() == alone


def test_two_runs_whose_bytes_differ_keep_the_first_ones(root: str) -> None:
    """Bytes differ for teachers on other GPUs, or with another version of Arrow."""
    target, later = dataset(root), columns(Kind.TEACHER_SCORES)
    record = target.write_shard(0, columns(Kind.TEACHER_SCORES), {"tokens": 3})
    later["logprobs"] = join_rows([np.full(2, -9.0), np.zeros(0), np.zeros(1)], pa.float32())
    assert target.write_shard(0, later, {"tokens": 3}) == record == target.record(0)
    target.finish(1)
    assert target.read_shard(0)["logprobs"][0].as_py()[1] == -1.5


@pytest.mark.parametrize("left", [b"", b"PAR1 half", lambda content: content[:-9]])
def test_a_partial_shard_is_overwritten(root: str, left: Any) -> None:
    """A store without atomic writes may have one after a kill; it has no record."""
    target = dataset(root)
    record = target.write_shard(0, columns(target.kind), {})
    content = read_bytes(target.shard_url(0)) or b""
    overwrite(target.shard_url(0), left(content) if callable(left) else left)
    remove(target.record_url(0))
    assert target.write_shard(0, columns(target.kind), {}) == record
    assert read_bytes(target.shard_url(0)) == content


def test_a_flipped_bit_is_seen_without_a_record() -> None:
    """This is tested for the data; in the footer, a few bits do not matter."""
    table = pa.table(columns(Kind.TEACHER_SCORES), schema=SCHEMAS[Kind.TEACHER_SCORES])
    content, refused = encode_parquet(table), 0
    for at in range(len(content)):
        flipped = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        if _holds_rows(flipped, table):
            assert repr(pq.read_table(pa.BufferReader(flipped)).to_pylist()) == repr(table.to_pylist())
        else:
            refused += 1
    assert refused > len(content) / 3


def test_a_shard_of_other_examples_is_overwritten(root: str) -> None:
    target = dataset(root)
    overwrite(target.shard_url(0), encode_parquet(pa.table(columns(target.kind, 1), schema=SCHEMAS[target.kind])))
    target.write_shard(0, columns(target.kind), {})
    assert target.read_shard(0)["id"].to_pylist() == ["doc:0:0", "doc:0:1", "doc:0:2"]
