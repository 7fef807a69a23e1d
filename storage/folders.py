"""Folders of files in the store (tokenizers, students, …): worked on locally, complete once they have a manifest.

On a local root the working folder is the stored one. On an object store it is in this machine's cache; its files are
uploaded when published, the manifest last.
"""

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from storage.dataset import Stored, parse_stored
from storage.errors import UserError
from storage.fingerprints import fingerprint, hash_file, plain, stored_name
from storage.lease import Lease, hold
from storage.schemas import FORMAT_VERSION, MANIFEST
from storage.urls import (
    download,
    file_sizes,
    is_local,
    join_url,
    list_folders,
    open_filesystem,
    publish,
    read_bytes,
    remove,
    upload,
)

FOLDER_KINDS = ("tokenizers", "pair_biases", "students")


class FolderManifest(Stored):
    """What a published folder holds."""

    format_version: int
    name: str
    identity: dict[str, Any]
    files: dict[str, str]
    """SHA-256 by name"""
    sizes: dict[str, int] = Field(default_factory=dict)
    """in bytes, by name"""
    results: dict[str, Any]
    """what was measured: held-out bits per byte, counts, ..."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """what decides no byte: the run's whole configuration, versions of packages, commit"""

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, str]) -> dict[str, str]:
        # fetching writes files of these names: none may lead out of the folder
        if strange := [name for name in files if name in ("", ".", "..") or "/" in name or "\\" in name]:
            raise ValueError(f"{strange[0]!r} is no file's name")
        return files


@dataclass(frozen=True)
class StoredFolder:
    """A folder by its place and identity, whether or not it is there yet."""

    root: str
    kind: str
    label: str
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)

    @property
    def name(self) -> str:
        return stored_name(self.kind, self.label, self.identity)

    @property
    def url(self) -> str:
        return join_url(self.root, self.kind, self.name)

    @property
    def path(self) -> Path:
        """Where this machine works on it."""
        return working_folder(self.root, self.kind, self.name)

    @property
    def _is_local(self) -> bool:
        return is_local(open_filesystem(self.url)[0])

    def manifest(self) -> FolderManifest | None:
        """The manifest, or None when the folder is not complete. Raises UserError when it is damaged or another's."""
        manifest = load_folder_manifest(self.url)
        if manifest and (manifest.name, manifest.identity) != (self.name, plain(self.identity)):
            raise UserError(
                f"{self.url}/manifest.json: belongs to {manifest.name}, or was edited: don't move or edit folders; "
                f"`alm delete {self.url}` and run the stage again"
            )
        return manifest

    def held(self) -> AbstractContextManager[Lease]:
        """Wait until no other process works on the folder, and keep others from it meanwhile."""
        return hold(join_url(self.url, ".lease"))

    def fetch(self) -> Path:
        """The local path of a complete folder, downloaded where it is not there yet.

        Raises UserError when a file is missing or not the one that was published.
        """
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"{self.url}: not complete (it has no manifest): run the stage that writes it")
        for name, sha256 in manifest.files.items():
            if not self._holds(name, sha256) and not self._downloads(name, sha256):
                raise UserError(
                    f"{join_url(self.url, name)}: is missing, or not the file that was published: "
                    f"`alm repair {self.url}` makes it again; by hand: delete its manifest.json and run the stage again"
                )
        return self.path

    def _holds(self, name: str, sha256: str) -> bool:
        return (self.path / name).is_file() and hash_file(self.path / name) == sha256

    def _downloads(self, name: str, sha256: str) -> bool:
        return not self._is_local and download(join_url(self.url, name), self.path / name) and self._holds(name, sha256)

    def upload(self, name: str) -> None:
        """Copy a file, or a folder below the working folder, to the store; nothing to do on a local root."""
        if self._is_local:
            return
        local = self.path / name
        files = [file for file in local.rglob("*") if file.is_file()] if local.is_dir() else [local]
        # in the order of writing, so that what marks the folder complete comes last here too
        for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file)):
            upload(file, join_url(self.url, file.relative_to(self.path).as_posix()))

    def mirror(self, name: str, children: Collection[str]) -> None:
        """Make these, in this order, the sub-folders that the store's folder `name` has: upload new ones, then remove.

        They are whole or not there: one that an earlier run left half uploaded is uploaded again.
        """
        if self._is_local:
            return
        for child in children:
            if file_sizes(join_url(self.url, name, child)) != _file_sizes(self.path / name / child):
                self.upload(f"{name}/{child}")
        for child in sorted(set(list_folders(join_url(self.url, name))) - set(children)):
            remove(join_url(self.url, name, child))

    def restore(self, name: str) -> None:
        """Bring the sub-folders of folder `name` that the store has and this machine lacks; nothing on a local root."""
        if self._is_local:
            return
        for child in list_folders(join_url(self.url, name)):
            if not (self.path / name / child).exists():
                self._restore_child(f"{name}/{child}")

    def restore_anew(self, name: str) -> None:
        """Make the folder `name` here what it is in the store, whatever is here; nothing on a local root."""
        if not self._is_local:
            shutil.rmtree(self.path / name, ignore_errors=True)
            self.restore(name)

    def _restore_child(self, child: str) -> None:
        files = file_sizes(join_url(self.url, child))
        if not files:  # some object stores go on listing a folder whose files were removed
            return
        # beside the folder, and moved into it when all is there: a kill leaves no half of it
        partial = self.path / ".restoring"
        shutil.rmtree(partial, ignore_errors=True)
        for file in files:
            download(join_url(self.url, child, file), partial / file)
        (self.path / child).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(self.path / child)

    def finish(self, results: Mapping[str, Any]) -> FolderManifest:
        """Publish the files directly in the working folder (not its sub-folders), the manifest last.

        Hidden files are left out: a kill may have left temporary ones.
        """
        files = sorted(file for file in self.path.iterdir() if file.is_file() and _is_content(file.name))
        manifest = FolderManifest(
            format_version=FORMAT_VERSION,
            name=self.name,
            identity=dict(self.identity),
            files={file.name: hash_file(file) for file in files},
            sizes={file.name: file.stat().st_size for file in files},
            results=dict(results),
            provenance=dict(self.provenance),
        )
        for file in files:
            self.upload(file.name)
        url = join_url(self.url, MANIFEST)
        return parse_stored(FolderManifest, url, publish(url, manifest.to_json()))

    def has(self, name: str) -> bool:
        """Whether the store holds a file below the folder `name`."""
        return bool(file_sizes(join_url(self.url, name)))

    def remove(self, name: str) -> None:
        """Remove a file or folder, in the store and here; nothing to do where it is not there."""
        remove(join_url(self.url, name))
        remove(str(self.path / name))


def stored_folder(url: str) -> StoredFolder:
    """The complete folder at a URL (<root>/students/<name>), whoever wrote it.

    Raises UserError when there is none, or its manifest is damaged or another's.
    """
    manifest = load_folder_manifest(url)
    if manifest is None:
        raise UserError(f"{url}: no complete folder (it has no manifest.json); `alm list ROOT` says what there is")
    root, kind, name = url.rstrip("/").rsplit("/", 2)
    return StoredFolder(root, kind, name.rpartition("-")[0], manifest.identity)


def working_folder(root: str, kind: str, name: str) -> Path:
    """Where this machine works on a stored folder: in place on a disk, else in its cache."""
    fs, path = open_filesystem(join_url(root, kind, name))
    # one folder a root: runs into two roots at once must not work on the same files
    return Path(path) if is_local(fs) else cache_folder() / fingerprint({"root": root}) / kind / name


def upload_again(root: str, kind: str, manifest: FolderManifest, names: Collection[str]) -> bool:
    """Put these files of a published folder into the store once more, from this machine's copy.

    False, and nothing is done, where there is no such copy, or its files are not those that were published.
    """
    copy = working_folder(root, kind, manifest.name)
    url = join_url(root, kind, manifest.name)
    whole = all((copy / name).is_file() and hash_file(copy / name) == manifest.files[name] for name in names)
    if is_local(open_filesystem(url)[0]) or not whole:
        return False
    for name in names:
        upload(copy / name, join_url(url, name))
    return True


def load_folder_manifest(url: str) -> FolderManifest | None:
    """The manifest of the folder at a URL, or None when it is not complete. Raises UserError when it is damaged."""
    manifest = join_url(url, MANIFEST)
    content = read_bytes(manifest)
    return None if content is None else parse_stored(FolderManifest, manifest, content)


def _is_content(name: str) -> bool:
    return name != MANIFEST and not name.startswith(".")


def _file_sizes(folder: Path) -> dict[str, int]:
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def cache_folder() -> Path:
    """This machine's cache: $ALM_CACHE, or alm-pipeline in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alm-pipeline"
    return Path(os.environ.get("ALM_CACHE") or default)
