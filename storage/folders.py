"""Folders of files in the store (tokenizers, students): worked on locally, complete once they have a manifest.

On a local root the working folder is the stored one. On an object store it is in this machine's cache; its files are
uploaded when published, the manifest last.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from storage.dataset import Stored
from storage.errors import UserError
from storage.identity import fingerprint, hash_file
from storage.schemas import FORMAT_VERSION
from storage.urls import is_local, join_url, list_names, open_filesystem, publish, read_bytes


class FolderManifest(Stored):
    """What a published folder holds."""

    format_version: int
    name: str
    identity: dict[str, Any]
    files: dict[str, str]
    """SHA-256 by name"""
    results: dict[str, Any]
    """what was measured: held-out bits per byte, counts, ..."""


@dataclass(frozen=True)
class StoredFolder:
    """A folder by its place and identity, whether or not it is there yet."""

    root: str
    kind: str
    label: str
    identity: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.label}-{fingerprint({'kind': self.kind, 'format': FORMAT_VERSION, **self.identity})}"

    @property
    def url(self) -> str:
        return join_url(self.root, self.kind, self.name)

    @property
    def path(self) -> Path:
        """Where this machine works on it."""
        fs, path = open_filesystem(self.url)
        return Path(path) if is_local(fs) else cache_folder() / self.kind / self.name

    def manifest(self) -> FolderManifest | None:
        """The manifest, or None when the folder is not complete."""
        url = join_url(self.url, "manifest.json")
        content = read_bytes(url)
        try:
            return None if content is None else FolderManifest.model_validate_json(content)
        except ValidationError as error:
            raise UserError(f"{url}: is damaged or of another version: {error.errors()[0]['msg']}") from error

    def fetch(self) -> Path:
        """The local path of a complete folder, downloaded where it is not there yet.

        Raises UserError when a file is missing or not the one that was published.
        """
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"{self.url}: not complete (it has no manifest): run the stage that writes it")
        for name, sha256 in manifest.files.items():
            if not (self.path / name).is_file():
                self._download(name)
            if hash_file(self.path / name) != sha256:
                raise UserError(f"{self.path / name}: is not the file that was published: delete it and run again")
        return self.path

    def _download(self, name: str) -> None:
        content = read_bytes(join_url(self.url, name))
        if content is None:
            raise UserError(f"{join_url(self.url, name)}: is missing: delete the folder's manifest.json and run again")
        publish(str(self.path / name), content)

    def upload(self, name: str) -> None:
        """Copy a file, or a folder below the working folder, to the store; nothing to do on a local root."""
        fs, path = open_filesystem(self.url)
        if is_local(fs):
            return
        local = self.path / name
        files = [file for file in local.rglob("*") if file.is_file()] if local.is_dir() else [local]
        # in the order of writing, so that what marks the folder complete comes last here too
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
            fs.put_file(str(file), f"{path}/{file.relative_to(self.path).as_posix()}")

    def mirror(self, name: str) -> None:
        """Make the folder `name` in the store what it is here: upload what is new, then remove what is gone."""
        fs, path = open_filesystem(self.url)
        if is_local(fs):
            return
        there = list_names(join_url(self.url, name))
        here = {child.name for child in (self.path / name).glob("*")}
        for child in sorted(here - set(there)):
            self.upload(f"{name}/{child}")
        for child in sorted(set(there) - here):
            fs.rm(f"{path}/{name}/{child}", recursive=True)

    def restore(self, name: str) -> None:
        """Bring the folder `name` back from the store to a machine that has none of it."""
        fs, path = open_filesystem(self.url)
        if is_local(fs) or (self.path / name).exists() or not fs.exists(f"{path}/{name}"):
            return
        for file in fs.find(f"{path}/{name}"):
            target = self.path / file[len(path) :].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(file, str(target))

    def finish(self, results: Mapping[str, Any]) -> FolderManifest:
        """Publish the files directly in the working folder (not its sub-folders), the manifest last."""
        files = sorted(file for file in self.path.iterdir() if file.is_file() and file.name != "manifest.json")
        manifest = FolderManifest(
            format_version=FORMAT_VERSION,
            name=self.name,
            identity=dict(self.identity),
            files={file.name: hash_file(file) for file in files},
            results=dict(results),
        )
        for file in files:
            self.upload(file.name)
        publish(join_url(self.url, "manifest.json"), manifest.to_json())
        return manifest

    def remove(self, name: str) -> None:
        """Remove a file or folder, here and in the store."""
        fs, path = open_filesystem(self.url)
        if fs.exists(f"{path}/{name}"):
            fs.rm(f"{path}/{name}", recursive=True)
        shutil.rmtree(self.path / name, ignore_errors=True)


def cache_folder() -> Path:
    """This machine's cache: $ALM_CACHE, or alm-pipeline in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alm-pipeline"
    return Path(os.environ.get("ALM_CACHE", default))
