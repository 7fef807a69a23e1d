"""What operations cost as a function of the number of shards: requests to a store, and what is kept in memory."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import storage.dataset
from storage.dataset import Dataset, ShardRecord
from storage.schemas import MANIFEST
from storage.upkeep.catalog import Catalog
from storage.upkeep.verify import verify
from storage.urls import file_sizes, join_url, remove
from tests.storage.proxy import Proxy, proxy_of_stores
from tests.storage.s3_server import S3Server
from tests.storage.samples import columns, dataset, write

FEW, MANY = 2, 12

OPERATIONS: dict[str, tuple[Callable[[Dataset], object], int]] = {
    "list what is stored": (lambda made: [entry.bytes for entry in Catalog.open(made.root).entries.values()], 0),
    "verify by sizes": (lambda made: verify(made.url), 0),
    "find the missing shards": (lambda made: made.missing(range(MANY)), 0),
    "find the shards that are there": (lambda made: made.recorded(), 0),
    "read the manifest": (lambda made: [made.complete_manifest() for _ in range(3)], 0),
    "know all records": (lambda made: made.known_records(range(len(made.complete_manifest().shards))), 0),
    "read all shards": (lambda made: [made.read_shard(k) for k in range(len(made.complete_manifest().shards))], 1),
    "verify by checksums": (lambda made: verify(made.url, checksums=True), 3),
}
"""Operations on a complete dataset, with their requests per shard; by checksums, a shard takes a HEAD and a GET."""


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(storage.dataset, "_LISTED_FROM", FEW)
    with proxy_of_stores(s3_server, monkeypatch, read_timeout=20, pause=0.01) as proxy:
        yield proxy


def requests(proxy: Proxy, operation: Callable[[], object]) -> int:
    before = len(proxy.requests)
    operation()
    return len(proxy.requests) - before


def made(root: str, shards: int) -> Dataset:
    """A dataset in a root of its own, as a process finds it that has not read it yet."""
    write(dataset(join_url(root, str(shards))), shards)
    return dataset(join_url(root, str(shards)))


def test_requests_grow_with_the_shards_at_most(s3_root: str, proxy: Proxy) -> None:
    few, many = made(s3_root, FEW), made(s3_root, MANY)
    grown = {}
    for name, (operation, _) in OPERATIONS.items():
        counts = [requests(proxy, lambda each=each, act=operation: act(dataset(each.root))) for each in (few, many)]
        grown[name] = (counts[1] - counts[0]) / (MANY - FEW)
    assert grown == {name: per_shard for name, (_, per_shard) in OPERATIONS.items()}


def test_a_dataset_is_finished_with_one_request_per_shard(s3_root: str, proxy: Proxy) -> None:
    counts = []
    for shards in (FEW, MANY):
        target = made(s3_root, shards)
        remove(join_url(target.url, MANIFEST))
        counts.append(requests(proxy, lambda target=target, n=shards: target.finish(n)))
    assert counts[1] - counts[0] == MANY - FEW


@pytest.mark.parametrize("listed_from", [1, 1000])
def test_missing_shards_are_the_same_however_they_are_looked_up(
    root: str, listed_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.dataset, "_LISTED_FROM", listed_from)
    target = dataset(root)
    assert target.missing(range(3)) == [0, 1, 2]
    write(target, 5)
    remove(target.record_url(1))
    remove(target.shard_url(3))
    assert target.missing([4, 1, 7, 0, 3]) == [1, 7]
    assert target.recorded() == {0, 2, 3, 4}


def test_a_repair_looks_for_its_shards_beside_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.dataset, "_LISTED_FROM", 1)
    target = dataset(str(tmp_path))
    write(target, 3)
    again = replace(target, rewritten=frozenset({1}))
    assert again.missing(range(3)) == [1]
    again.write_shard(1, columns(again.kind, 1), {"tokens": 4})
    assert again.missing(range(3)) == []


def test_a_manifest_that_was_read_is_not_sent_to_other_processes(tmp_path: Path) -> None:
    target = dataset(str(tmp_path))
    write(target, 40)
    alone = len(pickle.dumps(dataset(str(tmp_path))))
    assert len(target.complete_manifest().shards) == 40
    assert len(pickle.dumps(target)) == alone
    assert pickle.loads(pickle.dumps(target)).read_shard(39).num_rows == 3


counts = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.integers(0, 2**50), max_size=4
)


@given(rows=st.integers(0, 2**40), size=st.integers(0, 2**40), own=counts, dropped=counts)
def test_a_record_is_the_json_of_every_document(
    rows: int, size: int, own: dict[str, int], dropped: dict[str, int]
) -> None:
    record = ShardRecord(rows=rows, bytes=size, sha256="ab", counts=own, dropped=dropped)
    plain = {"rows": rows, "bytes": size, "sha256": "ab", "counts": own, "dropped": dropped}
    expected = json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert record.to_json() == expected.encode()


@pytest.mark.parametrize("shards", [0, 1, 2, 5])
def test_a_manifest_knows_what_its_dataset_takes(tmp_path: Path, shards: int) -> None:
    manifest = write(dataset(str(tmp_path)), shards)
    assert manifest.stored_bytes == sum(file_sizes(dataset(str(tmp_path)).url).values())
