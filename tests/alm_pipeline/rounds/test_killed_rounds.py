"""Rounds that are killed with -9 at any of their writes, and run again, write the bytes of unbroken ones.

Manifests of rounds name local folders of students, so what is compared has the same root and the same cache.
"""

import os
import random
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from alm_pipeline.config import AlmConfig
from storage.urls import file_sizes, join_url, read_bytes, remove
from tests.killable import KillableRunner
from tests.storage.s3_server import BUCKET, S3Server, environment

SOAK = int(os.environ.get("ALM_SOAK", "1"))
Files = dict[str, bytes | None]


class Unbroken(NamedTuple):
    root: str
    files: Files
    prepared: frozenset[str]
    """the files that are there before the first round"""
    cache: Path
    """of the machine that runs the rounds"""
    variables: Mapping[str, str]

    def start_again(self) -> None:
        """Remove all that the rounds have made, also from the machine's cache."""
        for name in file_sizes(self.root).keys() - self.prepared:
            remove(join_url(self.root, name))
        shutil.rmtree(self.cache, ignore_errors=True)

    def run(self, runner: KillableRunner, stage: str, at_event: int | None = None) -> bool:
        """Return whether it was killed."""
        variables = {**self.variables, "ALM_CACHE": str(self.cache)}
        return bool(runner.run(stage, self.root, variables, at_event=at_event)["killed"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill-rounds")


@pytest.fixture(scope="module")
def runner(folder: Path, text_rounds: AlmConfig) -> Iterator[KillableRunner]:
    assert text_rounds.rounds
    # λ < 1: what the student wrote is mixed with the corpus
    config = text_rounds.model_copy(update={"rounds": text_rounds.rounds.model_copy(update={"mix": 0.5})})
    started = KillableRunner(config.model_dump_json(), folder, "rounds")
    yield started
    started.close()


@pytest.fixture(scope="module")
def on_a_disk(runner: KillableRunner, folder: Path) -> Unbroken:
    """What the runner has made while it loaded everything, and then made again up to the first round."""
    root = str(folder / "unbroken")
    made = Unbroken(root, read_files(root), frozenset(), folder / "cache", {})
    shutil.rmtree(root)
    assert not made.run(runner, "prepare")
    return made._replace(prepared=frozenset(file_sizes(root)))


@pytest.fixture(scope="module")
def in_a_bucket(runner: KillableRunner, folder: Path, s3_server: S3Server) -> Iterator[Unbroken]:
    root, variables = f"s3://{BUCKET}/{secrets.token_hex(4)}", environment(s3_server.endpoint)
    made = Unbroken(root, {}, frozenset(), folder / "s3-cache", variables)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        assert not made.run(runner, "prepare")
        prepared = frozenset(file_sizes(root))
        assert not made.run(runner, "rounds")
        yield made._replace(files=read_files(root), prepared=prepared)


def read_files(root: str) -> Files:
    """Return the visible files, without those that tell how long a training took."""
    names = [name for name in file_sizes(root) if not name.rsplit("/", 1)[-1].startswith(".") and "/runs/" not in name]
    return {name: read_bytes(join_url(root, name)) for name in names}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ["on_a_disk", pytest.param("in_a_bucket", marks=pytest.mark.long)])
def test_writing_is_killed_at_each_of_its_writes(
    runner: KillableRunner, request: pytest.FixtureRequest, place: str
) -> None:
    unbroken: Unbroken = request.getfixturevalue(place)
    unbroken.start_again()
    kills = 0
    # each run begins where the one before was killed, and is killed one write later than that one was
    while unbroken.run(runner, "write", at_event=kills + 1):
        kills += 1
    assert kills > 5
    written = read_files(unbroken.root)
    expected = {name: content for name, content in unbroken.files.items() if name in written}
    assert [name for name in written if "round-1-by" in name]
    assert written == expected


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("place", "seed"),
    [("on_a_disk", seed) for seed in range(3 * SOAK)] + [("in_a_bucket", seed) for seed in range(SOAK)],
)
def test_rounds_are_killed_anywhere(
    runner: KillableRunner, request: pytest.FixtureRequest, place: str, seed: int
) -> None:
    unbroken: Unbroken = request.getfixturevalue(place)
    unbroken.start_again()
    chance = random.Random(f"{place} {seed}")
    kills = 0
    while unbroken.run(runner, "rounds", at_event=chance.randint(20, 200)):
        kills += 1
    assert kills > 1
    files = read_files(unbroken.root)
    both = files.keys() | unbroken.files.keys()
    assert [name for name in both if files.get(name) != unbroken.files.get(name)] == []
