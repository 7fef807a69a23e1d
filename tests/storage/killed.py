"""Operations that replace, remove or write what is stored, killed (-9) before and after each of their writes.

`python -m tests.storage.killed OPERATION FOLDER EVERY [S3_ENDPOINT]` prints a line of JSON for each kill, at every
EVERY-th write, with what is wrong afterward. Every process that works on the store is a fork of one that has everything
loaded.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from storage.dataset import Dataset
from storage.folders import FolderManifest, StoredFolder, make_folder
from storage.lease import Lease, _ObjectLease, hold
from storage.replacement import take_place
from storage.upkeep.catalog import Catalog, open_entry
from storage.upkeep.prune import delete, discard, find_waste
from storage.upkeep.verify import stale_shards, verify
from storage.urls import file_sizes, overwrite, read_bytes
from tests.killable import _Events
from tests.storage.s3_server import BUCKET, environment
from tests.storage.samples import dataset, write

NAMES = ("config.json", "model.safetensors", "tokenizer.json")


def _files(url: str) -> set[str]:
    """Return the files below a folder, without the temporary ones of killed writes, which `alm prune` lists."""
    return {name for name in file_sizes(url) if not name.endswith(".tmp")}


def _student(root: str) -> StoredFolder:
    return StoredFolder(root, "students", "tiny", {"stage_version": 1})


def _make(version: str) -> Callable[[StoredFolder, Lease], FolderManifest]:
    def make(target: StoredFolder, lease: Lease) -> FolderManifest:
        target.path.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (target.path / name).write_text(f"{name} {version}")
        return target.finish({"version": version}, lease)

    return make


class Again:
    """A finished student is made again, as `--again` asks for."""

    def prepare(self, root: str) -> None:
        make_folder(_student(root), _make("old"))

    def run(self, root: str) -> None:
        student = _student(root)
        student.request_replacement()
        make_folder(student, _make("new"))

    def problem(self, root: str) -> str:
        """A reader finds the old or the new one, whole."""
        student = _student(root)
        folder = student.fetch()
        manifest = student.manifest()
        assert manifest
        contents = {(folder / name).read_text() for name in NAMES}
        version = manifest.results["version"]
        return "" if contents == {f"{name} {version}" for name in NAMES} else f"{version}: {contents}"

    def end_problem(self, root: str) -> str:
        student = _student(root)
        manifest = student.manifest()
        files = sorted(_files(student.url))
        if manifest is None or manifest.results != {"version": "new"} or files != sorted([*NAMES, "manifest.json"]):
            return f"{manifest} {files}"
        return "; ".join(damage.problem for damage in verify(student.url, checksums=True))


class Repair:
    """A damaged shard is written again beside the old one, and takes its place."""

    def _dataset(self, root: str) -> Dataset:
        return dataset(root)

    def prepare(self, root: str) -> None:
        made = self._dataset(root)
        write(made, 2)
        overwrite(made.shard_url(0), (read_bytes(made.shard_url(0)) or b"")[:-1])

    def run(self, root: str) -> None:
        made = self._dataset(root)
        if not open_entry(made.url).has_ready_replacement:
            write(replace(made, rewritten=stale_shards(verify(made.url))), 2)
        with hold(f"{made.url}/.lease"):
            take_place(made.url)

    def problem(self, root: str) -> str:
        """What was readable still is."""
        made = self._dataset(root)
        return "" if made.manifest() and made.read_shard(1).num_rows == 3 else "shard 1 is gone"

    def end_problem(self, root: str) -> str:
        made = self._dataset(root)
        left = _files(made.url) - {f"shard-{k:05d}.{end}" for k in (0, 1) for end in ("json", "parquet")}
        return "; ".join(
            [damage.problem for damage in verify(made.url, checksums=True)] + sorted(left - {"manifest.json"})
        )


class Delete:
    """A dataset is deleted: it is whole, or it is not complete."""

    def prepare(self, root: str) -> None:
        write(dataset(root), 3)
        write(dataset(root, other=1), 1)

    def run(self, root: str) -> None:
        made = dataset(root)
        catalog = Catalog.open(root)
        if f"{made.kind}/{made.name}" in catalog.entries:
            self.remove(catalog, made)

    def remove(self, catalog: Catalog, made: Dataset) -> None:
        delete(catalog, f"{made.kind}/{made.name}")

    def problem(self, root: str) -> str:
        made = dataset(root)
        return "; ".join(damage.problem for damage in verify(made.url, checksums=True)) if made.manifest() else ""

    def end_problem(self, root: str) -> str:
        return "; ".join(_files(dataset(root).url)) or ("" if dataset(root, other=1).manifest() else "other is gone")


class Prune(Delete):
    """An unused dataset is pruned."""

    def remove(self, catalog: Catalog, made: Dataset) -> None:
        for item in find_waste(catalog, 1e12, with_incomplete=True):
            if item.folder == made.url:
                discard(item)


OPERATIONS: dict[str, type[Again | Repair | Delete]] = {
    "again": Again,
    "repair": Repair,
    "delete": Delete,
    "prune": Prune,
}


def _fork(work: Callable[[int], None]) -> tuple[bool, str]:
    """Run `work` in a fork with the file descriptor of a pipe; return whether it was killed, and what it wrote."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            work(writing)
        except BaseException:
            os.write(writing, f"ERROR {traceback.format_exc()}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.WIFSIGNALED(os.waitpid(child, 0)[1]), text


def main(operation: str, folder: str, every: str = "1", endpoint: str = "") -> None:
    import pandas  # noqa: F401  (loaded before the forks)
    import s3fs  # noqa: F401

    # not at import: a test that imports this module would shorten the leases of all others
    _ObjectLease.BEAT_S, _ObjectLease.GIVEN_UP_AFTER_S = 0.05, 0.3
    tested = OPERATIONS[operation]()
    if endpoint:
        os.environ.update(environment(endpoint))
    for fatal in range(1, 1000, int(every)):
        root = f"s3://{BUCKET}/{Path(folder).name}/{operation}-{fatal}" if endpoint else f"{folder}/{fatal}"
        os.environ["ALM_CACHE"] = f"{folder}/cache-{fatal}"

        def run(pipe: int, root: str = root, fatal: int = fatal) -> None:
            def report(what: str, _: int) -> None:
                os.write(pipe, what.encode())

            _Events([root, os.environ["ALM_CACHE"]], fatal, report).watch()
            tested.run(root)

        _, error = _fork(lambda _: tested.prepare(root))  # noqa: B023  (called at once)
        killed, event = _fork(run)
        _, problem = _fork(lambda pipe: _write(pipe, tested.problem(root)))  # noqa: B023
        _, rerun = _fork(lambda _: tested.run(root))  # noqa: B023
        _, end = _fork(lambda pipe: _write(pipe, tested.end_problem(root)))  # noqa: B023
        found = {"prepare": error, "problem": problem, "rerun": rerun, "end": end}
        print(json.dumps({"killed": killed, "event": event, **found}), flush=True)
        if not killed:
            return


def _write(pipe: int, text: str) -> None:
    os.write(pipe, text.encode())


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(*sys.argv[1:])
