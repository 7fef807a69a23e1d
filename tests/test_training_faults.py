"""A training whose caches and checkpoints are in a bucket, under a server that fails, is slow, or is killed.

The student has the bytes of an undisturbed one, or the run ends with an error that names the file, and resumes.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import botocore.retries.standard
import pytest
from botocore.exceptions import BotoCoreError

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from storage.folders import StoredFolder
from storage.urls import file_sizes, join_url, read_bytes, upload
from tests.storage.proxy import Fault, Proxy, answer, cut_answer, cut_request, proxy_of_stores, slow
from tests.storage.s3_server import BUCKET, S3Server


@pytest.fixture(scope="module")
def undisturbed(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Path]:
    """A pipeline on a disk with a trained student, and a copy of its store without the student."""
    folder = tmp_path_factory.mktemp("faults")
    pipeline = Pipeline(config, str(folder / "root"))
    pipeline.run()
    return pipeline, folder / "root"


@pytest.fixture
def proxy(s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server of `s3_root`, with short pauses and timeouts."""
    with proxy_of_stores(s3_server, monkeypatch, read_timeout=2, pause=0.05) as proxy:
        yield proxy


def _caches_in_bucket(undisturbed: tuple[Pipeline, Path], root: str) -> Pipeline:
    pipeline, store = undisturbed
    for name in file_sizes(str(store)):
        if not name.startswith("students/"):
            upload(store / name, join_url(root, name))
    return Pipeline(pipeline.config, root)


def _assert_same_student(undisturbed: tuple[Pipeline, Path], student: str) -> None:
    manifest = undisturbed[0].student.manifest()
    assert manifest
    # the card and its picture are of the same numbers, but name the place of the caches
    for name in manifest.files:
        assert read_bytes(f"{student}/{name}") == read_bytes(f"{undisturbed[0].student.url}/{name}"), name
    assert not [name for name in file_sizes(student) if name.startswith(("checkpoints/", ".lease"))]


class _Weather:
    """Harms a share of all requests, none three times in a row: one is tried five times, then the run ends."""

    def __init__(self, proxy: Proxy, fault: Fault, share: float) -> None:
        self._fault, self._share, self._chance = fault, share, random.Random(0)
        self._next = proxy.next_fault
        self._in_a_row: Counter[str] = Counter()
        self.harmed: set[str] = set()

    def next_fault(self, method: str, path: str) -> Fault | None:
        planned = self._next(method, path)
        request = f"{method} {path}"
        if planned or self._in_a_row[request] == 2 or self._chance.random() > self._share:
            self._in_a_row[request] = 0
            return planned
        self._in_a_row[request] += 1
        self.harmed.add(method)
        return self._fault


FAULTS: dict[str, tuple[Fault, float]] = {
    "500": (answer(500, "InternalError"), 0.25),
    "503": (answer(503, "SlowDown"), 0.25),
    "slow": (slow(0.3), 0.1),
    "cut requests": (cut_request, 0.15),
    "cut answers": (cut_answer, 0.05),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FAULTS)
def test_a_student_is_the_same_under_faults(
    undisturbed: tuple[Pipeline, Path],
    proxy: Proxy,
    s3_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "machine"))
    pipeline = _caches_in_bucket(undisturbed, s3_root)
    weather = _Weather(proxy, *FAULTS[name])
    with monkeypatch.context() as patch:
        patch.setattr(proxy, "next_fault", weather.next_fault)
        pipeline.train()
    assert weather.harmed >= {"GET", "PUT"}
    _assert_same_student(undisturbed, pipeline.student.url)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_is_killed_under_a_training(
    undisturbed: tuple[Pipeline, Path],
    s3_server: S3Server,
    s3_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    comes_back: bool,
) -> None:
    """It comes back soon, or it does not: then the run ends in bounded time with an error that names the URL.

    Run again, as the flow does by itself, it resumes.
    """
    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 1.0)
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "machine"))
    pipeline = _caches_in_bucket(undisturbed, s3_root)
    uploads: list[object] = []
    restart = threading.Thread(target=s3_server.start)
    mirror = StoredFolder.mirror

    def killing(*arguments: object) -> None:
        """Kill the server before the second checkpoint is uploaded."""
        uploads.append(arguments)
        if len(uploads) == 2:
            s3_server.kill()
            if comes_back:
                restart.start()
        mirror(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StoredFolder, "mirror", killing)
    notes: list[str] = []
    try:
        pipeline.train()
    except (OSError, BotoCoreError) as error:  # on a slow machine the server may come back after the last retry
        notes = error.__notes__
    if not comes_back:
        restart.start()
    restart.join()
    assert any(f"s3://{BUCKET}/" in note for note in notes) or (comes_back and not notes)
    if notes:
        Pipeline(pipeline.config, s3_root).train()
    assert len(uploads) >= 2
    _assert_same_student(undisturbed, pipeline.student.url)
