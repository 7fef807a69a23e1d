"""A pipeline killed with -9 at random moments of every stage and run again writes the bytes of an unbroken run.

Two machines take turns, each with its own cache. ALM_SOAK=10 kills ten times as often, with other seeds.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig, TrainedTokenizer
from storage.urls import file_sizes, join_url, read_bytes
from tests.killable import STAGES, KillableRunner
from tests.storage.s3_server import environment

SOAK = int(os.environ.get("ALM_SOAK", "1"))
KILLS_PER_STAGE = 2  # at a write; one more comes after some time


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def runner(folder: Path, config: AlmConfig) -> Iterator[KillableRunner]:
    """A runner that has completed an unbroken run in `folder`/unbroken: every stage, a handful of shards."""
    corpus = config.corpus.model_copy(update={"shard_bytes": 2048})
    student = config.student.model_copy(update={"tokenizer": TrainedTokenizer(vocab_size=320)})
    train = config.train.model_copy(update={"steps": 4, "ema": 0.9, "keep_checkpoints": 2})
    evaluation = config.evaluation.model_copy(update={"steps": 1, "patience": 3, "student": "best"})
    changes = {"corpus": corpus, "student": student, "train": train, "evaluation": evaluation}
    every_stage = config.model_copy(update=changes)
    started = KillableRunner(every_stage.model_dump_json(), folder)
    yield started
    started.close()


@pytest.fixture(scope="module")
def unbroken(runner: KillableRunner, folder: Path) -> dict[str, bytes | None]:
    return _files(str(folder / "unbroken"))


def _files(root: str) -> dict[str, bytes | None]:
    """Return the visible files; a kill may leave temporary files on a disk, which are hidden.

    Training times are left out, since they differ between runs.
    """
    names = [name for name in file_sizes(root) if not name.rsplit("/", 1)[-1].startswith(".") and "/runs/" not in name]
    return {name: read_bytes(join_url(root, name)) for name in names}


def _assert_nothing_is_half_written(root: str, unbroken: dict[str, bytes | None]) -> None:
    """Check datasets; tokenizers and students are changed in place, and count once they have a manifest."""
    for name, size in file_sizes(root).items():
        file = name.rsplit("/", 1)[-1]
        if not file.startswith(".") and (not name.startswith(("tokenizers/", "students/")) or file == "manifest.json"):
            assert size == len(unbroken[name] or b""), name


@pytest.mark.timeout(300 * SOAK)
@pytest.mark.parametrize("seed", range(SOAK))
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_killed_stages_are_resumed(
    request: pytest.FixtureRequest,
    runner: KillableRunner,
    unbroken: dict[str, bytes | None],
    tmp_path: Path,
    where: str,
    seed: int,
) -> None:
    root, variables = str(tmp_path / "root"), {}
    if where == "s3":
        root = request.getfixturevalue("s3_root")
        variables = environment(request.getfixturevalue("s3_server").endpoint)
    chance = random.Random(f"{where} {seed}")

    def run(stage: str, at_event: int | None = None, after_seconds: float | None = None) -> bool:
        """Return whether it was killed."""
        machine = {"ALM_CACHE": str(tmp_path / f"machine-{chance.randrange(2)}")}
        return bool(runner.run(stage, root, variables | machine, at_event, after_seconds)["killed"])

    for stage in STAGES:
        # the first kill is early enough for any stage; later ones may come after the end
        assert run(stage, at_event=chance.randint(1, 7))
        for kill in range(1, KILLS_PER_STAGE):
            run(stage, at_event=chance.randint(1, 16 << kill))
            _assert_nothing_is_half_written(root, unbroken)
        run(stage, after_seconds=chance.uniform(0.05, 0.05 + 2 * runner.loaded[stage]))
        _assert_nothing_is_half_written(root, unbroken)
        assert not run(stage)
    files = _files(root)
    assert {name: files.get(name) for name in files.keys() | unbroken if files.get(name) != unbroken.get(name)} == {}
