"""Rounds that are killed with -9 at any of their writes, and run again, write the bytes of unbroken ones."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from alm_pipeline.config import AlmConfig
from tests.killable import KillableRunner

SOAK = int(os.environ.get("ALM_SOAK", "1"))
Files = dict[str, bytes]


class Unbroken(NamedTuple):
    root: Path
    files: Files
    prepared: Path
    """a copy of the root as it is before the first round"""


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
def unbroken(runner: KillableRunner, folder: Path) -> Unbroken:
    """The manifests of rounds name local folders of students, so that a comparison needs the same root."""
    root = folder / "unbroken"
    files = read_files(root)
    shutil.rmtree(root)
    assert not runner.run("prepare", str(root), {"ALM_CACHE": str(folder / "cache")})["killed"]
    return Unbroken(root, files, Path(shutil.copytree(root, folder / "prepared")))


def read_files(root: Path) -> Files:
    """Return the visible files, without those that tell how long a training took."""
    files = (file for file in root.rglob("*") if file.is_file() and not file.name.startswith("."))
    named = {file.relative_to(root).as_posix(): file for file in files}
    return {name: file.read_bytes() for name, file in named.items() if "/runs/" not in name}


def start_again(unbroken: Unbroken) -> None:
    shutil.rmtree(unbroken.root)
    shutil.copytree(unbroken.prepared, unbroken.root)


def test_writing_is_killed_at_each_of_its_writes(runner: KillableRunner, unbroken: Unbroken, folder: Path) -> None:
    start_again(unbroken)
    machine = {"ALM_CACHE": str(folder / "cache")}
    kills = 0
    # each run begins where the one before was killed, and is killed one write later than that one was
    while runner.run("write", str(unbroken.root), machine, at_event=kills + 1)["killed"]:
        kills += 1
    assert kills > 5
    written = read_files(unbroken.root)
    expected = {name: content for name, content in unbroken.files.items() if name in written}
    assert [name for name in written if "round-1-by" in name]
    assert written == expected


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3 * SOAK))
def test_rounds_are_killed_anywhere(runner: KillableRunner, unbroken: Unbroken, folder: Path, seed: int) -> None:
    start_again(unbroken)
    chance, machine = random.Random(seed), {"ALM_CACHE": str(folder / "cache")}
    kills = 0
    while runner.run("rounds", str(unbroken.root), machine, at_event=chance.randint(20, 200))["killed"]:
        kills += 1
    assert kills > 1
    files = read_files(unbroken.root)
    both = files.keys() | unbroken.files.keys()
    assert [name for name in both if files.get(name) != unbroken.files.get(name)] == []
