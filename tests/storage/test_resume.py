"""A run that is killed between any two writings, and run again, leaves the files of an unbroken run."""

from collections.abc import Callable
from typing import Any

import pytest

from storage import dataset as dataset_module
from storage import urls
from storage.urls import file_sizes, join_url, read_bytes
from tests.storage.samples import dataset, write

SHARDS = 3
PUBLISHED = 2 * SHARDS + 1  # each shard and its record, then the manifest


class _Killed(BaseException):
    pass


def _dying_at(call: int) -> Callable[[str, bytes], None]:
    calls = iter(range(PUBLISHED))

    def publish(url: str, content: bytes) -> None:
        if next(calls) == call:
            raise _Killed
        urls.publish(url, content)

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


def test_a_resumed_run_redoes_only_what_has_no_record(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "publish", _dying_at(3))  # shard 1 without its record
    with pytest.raises(_Killed):
        write(dataset(root), SHARDS)
    again: list[str] = []
    publish: Any = urls.publish
    monkeypatch.setattr(dataset_module, "publish", lambda url, content: (again.append(url), publish(url, content)))
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
    # the second overtakes the first, which has just seen that shard 0 is not there
    assert first.record(0) is None
    assert write(second, 2) == alone
    first.write_shard(0, first.read_shard(0).to_pydict(), {"tokens": 3}, {"too_long": 0})
    assert write(first, 2) == second.manifest() == alone
