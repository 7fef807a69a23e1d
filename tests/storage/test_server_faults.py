"""A server that fails, is slow, cuts connections or is killed: a few retries, then an error, never half an object."""

import threading
from collections.abc import Callable, Collection, Iterator

import aiohttp
import botocore.retries.standard
import pytest
from botocore.exceptions import BotoCoreError, ReadTimeoutError

from storage import urls
from storage.dataset import Dataset, ShardRecord
from storage.errors import UserError
from storage.urls import file_sizes, join_url, list_names, overwrite, publish, read_bytes, remove
from tests.storage.proxy import Fault, Proxy, answer, cut_answer, cut_request, proxy_of_stores, slow
from tests.storage.s3_server import BUCKET, S3Server, client
from tests.storage.samples import columns, dataset, write

CONTENT = bytes(range(256)) * 4096
ATTEMPTS, ROUNDS = urls._S3_CONFIG["retries"]["total_max_attempts"], urls._S3_ROUNDS  # type: ignore[index]
BUSY = answer(503, "SlowDown")
BROKEN = answer(500, "InternalError")


@pytest.fixture
def proxy(s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server of `s3_root`, with short pauses and timeouts."""
    with proxy_of_stores(s3_server, monkeypatch, read_timeout=0.4, pause=0.01) as proxy:
        yield proxy


def _stored(s3_server: S3Server, url: str) -> bytes | None:
    """Read what the server stores, without the proxy."""
    s3 = client(s3_server.endpoint)
    try:
        return bytes(s3.get_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"))["Body"].read())
    except s3.exceptions.NoSuchKey:
        return None


Writing = Callable[[str, bytes], object]


@pytest.mark.parametrize("writing", [publish, overwrite])
@pytest.mark.parametrize("fault", [BUSY, BROKEN, slow(0.6), cut_request, cut_answer])
def test_a_write_survives_a_few_faults(
    proxy: Proxy, s3_server: S3Server, s3_root: str, writing: Writing, fault: Fault
) -> None:
    proxy.harm("PUT", fault, 3)
    writing(f"{s3_root}/x", CONTENT)
    # if only the response was lost, the object exists already, and fewer tries may suffice
    assert proxy.count("PUT", "x") == 4 or fault not in (BUSY, BROKEN, cut_request)
    assert _stored(s3_server, f"{s3_root}/x") == CONTENT


@pytest.mark.parametrize("method", ["GET"])
@pytest.mark.parametrize(("fault", "times"), [(BUSY, 3), (BROKEN, 3), (slow(0.6), 3), (cut_answer, 2)])
def test_a_read_survives_a_few_faults(proxy: Proxy, s3_root: str, method: str, fault: Fault, times: int) -> None:
    publish(f"{s3_root}/x", CONTENT)
    proxy.harm(method, fault, times)
    assert read_bytes(f"{s3_root}/x") == CONTENT
    assert proxy.count(method, "x") == times + 1


@pytest.mark.parametrize(("writing", "before"), [(publish, None), (overwrite, b"before")])
@pytest.mark.parametrize("fault", [BUSY, BROKEN, cut_request])
def test_a_write_ends_with_the_last_error(
    proxy: Proxy, s3_server: S3Server, s3_root: str, writing: Writing, before: bytes | None, fault: Fault
) -> None:
    """The old content stays."""
    if before:
        publish(f"{s3_root}/x", before)
    sent = proxy.count("PUT", "x")
    proxy.harm("PUT", answer(503, "ServiceUnavailable"), 2)
    proxy.harm("PUT", fault, 1000)
    with pytest.raises((OSError, BotoCoreError)) as caught:
        writing(f"{s3_root}/x", CONTENT)
    assert not isinstance(caught.value, UserError)
    assert caught.value.__notes__ == [f"{s3_root}/x: can't be written"]
    # aiohttp also sends a request again if a reused connection breaks
    assert proxy.count("PUT", "x") - sent <= ATTEMPTS * ROUNDS * 2
    assert _stored(s3_server, f"{s3_root}/x") == before


@pytest.mark.parametrize("method", ["GET"])
@pytest.mark.parametrize("fault", [BUSY, BROKEN, cut_answer])
def test_a_read_ends_with_the_last_error(proxy: Proxy, s3_root: str, method: str, fault: Fault) -> None:
    publish(f"{s3_root}/x", CONTENT)
    proxy.harm(method, fault, 1000)
    with pytest.raises((OSError, BotoCoreError, aiohttp.ClientPayloadError)) as caught:
        read_bytes(f"{s3_root}/x")
    assert not isinstance(caught.value, UserError)
    assert caught.value.__notes__ == [f"{s3_root}/x: can't be read"]
    assert proxy.count(method, "x") <= ATTEMPTS * ROUNDS * 2


@pytest.mark.parametrize("listing", [list_names, file_sizes])
@pytest.mark.parametrize("fault", [BUSY, BROKEN, cut_answer])
def test_a_listing_is_whole_or_fails(
    proxy: Proxy, s3_root: str, listing: Callable[[str], Collection[str]], fault: Fault
) -> None:
    """A failed listing never counts as empty."""
    publish(f"{s3_root}/x", CONTENT)
    proxy.harm("GET", fault, 2)
    assert list(listing(s3_root)) == ["x"]
    proxy.harm("GET", fault, 1000)
    with pytest.raises((OSError, BotoCoreError)) as caught:
        listing(s3_root)
    assert caught.value.__notes__ == [f"{s3_root}: can't be listed"]


@pytest.mark.parametrize("fault", [BUSY, BROKEN, cut_answer])
def test_a_removal_survives_a_few_faults(proxy: Proxy, s3_root: str, fault: Fault) -> None:
    for name in ("folder/x", "folder/y", "kept"):
        publish(f"{s3_root}/{name}", b"")
    proxy.harm("POST", fault, 3)
    remove(f"{s3_root}/folder")
    assert file_sizes(s3_root) == {"kept": 0}


@pytest.mark.parametrize(("method", "most"), [("GET", 8), ("PUT", 4)])
def test_a_silent_server_is_given_up(
    proxy: Proxy, s3_root: str, monkeypatch: pytest.MonkeyPatch, method: str, most: int
) -> None:
    publish(f"{s3_root}/x", CONTENT)
    sent = proxy.count(method, "x")
    monkeypatch.setattr(urls, "_S3_ROUNDS", 2)
    monkeypatch.setitem(urls._S3_CONFIG, "retries", {"mode": "standard", "total_max_attempts": 2})
    proxy.harm(method, slow(0.6), 1000)
    with pytest.raises(ReadTimeoutError) as caught:
        overwrite(f"{s3_root}/x", CONTENT) if method == "PUT" else read_bytes(f"{s3_root}/x")
    assert len(caught.value.__notes__) == 1
    assert proxy.count(method, "x") - sent == most


SHARDS = 6


def _write_with_restarts(target: Dataset, shards: int, written: Callable[[int, ShardRecord], None]) -> None:
    """Write as stages do, with up to two restarts after errors worth a retry, as the flow does."""
    for _ in range(3):
        try:
            for shard in range(shards):
                if not target.record(shard):
                    written(shard, target.write_shard(shard, columns(target.kind, shard), {"tokens": 3 + shard}))
            target.finish(shards)
            return
        except (OSError, BotoCoreError) as error:
            if not error.__notes__[0].startswith(target.url):
                raise
    raise AssertionError("the server came back, and was not found")


def _objects(root: str) -> dict[str, bytes | None]:
    return {name: read_bytes(join_url(root, name)) for name in file_sizes(root)}


def test_a_server_is_killed_and_restarted_under_a_writer(
    s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed after every second shard: what was acknowledged exists, and the result is the same."""
    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 1.0)
    unbroken, broken = dataset(f"{s3_root}/unbroken"), dataset(f"{s3_root}/broken")
    _write_with_restarts(unbroken, SHARDS, lambda *_: None)
    acknowledged: dict[int, ShardRecord] = {}
    restarts: list[threading.Thread] = []

    def written(shard: int, record: ShardRecord) -> None:
        acknowledged[shard] = record
        if shard % 2:
            s3_server.kill()
            restarts.append(threading.Thread(target=s3_server.start))
            restarts[-1].start()

    _write_with_restarts(broken, SHARDS, written)
    for restart in restarts:
        restart.join()
    assert len(restarts) == SHARDS // 2
    assert {shard: broken.record(shard) for shard in acknowledged} == acknowledged
    assert _objects(f"{s3_root}/broken") == _objects(f"{s3_root}/unbroken")


def test_a_server_is_killed_in_the_middle_of_a_body(proxy: Proxy, s3_server: S3Server, s3_root: str) -> None:
    """Half of the object has arrived: the old content stays, and a later write succeeds."""

    def kill(handler: object) -> None:
        cut_request(handler, s3_server.kill)

    publish(f"{s3_root}/x", b"before")
    proxy.harm("PUT", kill, 1)
    with pytest.raises((OSError, BotoCoreError)) as caught:
        overwrite(f"{s3_root}/x", CONTENT)
    assert caught.value.__notes__ == [f"{s3_root}/x: can't be written"]
    s3_server.start()
    assert _stored(s3_server, f"{s3_root}/x") == b"before"
    overwrite(f"{s3_root}/x", CONTENT)
    assert _stored(s3_server, f"{s3_root}/x") == CONTENT


def test_a_half_sent_shard_is_not_seen(proxy: Proxy, s3_root: str) -> None:
    target = dataset(s3_root)
    proxy.harm("PUT", cut_request, 1000)
    with pytest.raises((OSError, BotoCoreError)):
        write(target)
    assert (target.record(0), target.manifest(), file_sizes(s3_root)) == (None, None, {})
    proxy.heal()
    assert write(target) == target.manifest()
    assert target.read_shard(0).num_rows == 3
