"""Stored folders of files (tokenizers, students, …): processes work on them locally; a manifest makes them complete.

Under a local root the working folder is the stored folder itself. With an object store it is in this machine's cache,
and its files are uploaded when they are published, the manifest last.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from storage.dataset import StoredModel, parse_stored
from storage.errors import UserError
from storage.fingerprints import as_json, fingerprint, hash_file, stored_name
from storage.lease import LEASE, Lease, hold
from storage.printed.secrets import masked
from storage.replacement import (
    REPLACEMENT,
    is_ready,
    is_requested,
    replacement_url,
    request_replacement,
    take_place,
)
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

FolderKind = Literal[
    "tokenizers", "pair_biases", "substrings", "hypernetworks", "projections", "measurements", "students", "rounds"
]
FOLDER_KINDS: tuple[FolderKind, ...] = get_args(FolderKind)
CHECKPOINTS = "checkpoints"
"""the part of a student's folder that a training resumes from, removed when it is finished"""


class FolderManifest(StoredModel):
    """The manifest of a published folder."""

    format_version: int
    name: str
    identity: dict[str, Any]
    files: dict[str, str]
    """SHA-256 of each file, by name."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Size of each file in bytes, by name."""
    content: str | None = None
    """What identities name the tokenizer or model in the folder by."""
    results: dict[str, Any]
    """What was measured: held-out bits per byte, counts, …"""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """What decides no byte: the run's whole configuration, package versions, commit."""

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, str]) -> dict[str, str]:
        # fetching writes files with these names: none may point outside the folder
        if invalid := [name for name in files if name in ("", ".", "..") or "/" in name or "\\" in name]:
            raise ValueError(f"{invalid[0]!r} is not a valid file name")
        return files


@dataclass(frozen=True)
class StoredFolder:
    """A folder by its location and identity, whether or not it exists yet."""

    root: str
    kind: FolderKind
    label: str
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)
    is_replacement: bool = field(default=False, compare=False, kw_only=True)
    """Whether this is the replacement of the complete folder, which stays until the replacement is complete."""

    @property
    def name(self) -> str:
        return stored_name(self.kind, self.label, self.identity)

    @property
    def url(self) -> str:
        return replacement_url(self._home) if self.is_replacement else self._home

    @property
    def _home(self) -> str:
        """Where it is once it is complete."""
        return join_url(self.root, self.kind, self.name)

    @property
    def path(self) -> Path:
        """The folder in which this machine works on it."""
        home = working_folder(self.root, self.kind, self.name)
        return home / REPLACEMENT if self.is_replacement else home

    @property
    def _is_local(self) -> bool:
        return is_local(open_filesystem(self.url)[0])

    def manifest(self) -> FolderManifest | None:
        """Read the manifest; None if the folder is not complete. Raises UserError if it is damaged or foreign."""
        manifest = load_folder_manifest(self.url)
        if manifest and (manifest.name, manifest.identity) != (self.name, as_json(self.identity)):
            raise UserError(
                f"{self.url}/manifest.json: belongs to {manifest.name}, or was edited: don't move or edit folders; "
                f"`alm delete {self.url}` and run the stage again"
            )
        return manifest

    def held(self) -> AbstractContextManager[Lease]:
        """Wait until no other process works on the folder, and keep others waiting until the context ends."""
        return hold(join_url(self._home, LEASE))

    def request_replacement(self) -> None:
        """Ask for the folder to be made again, if it is complete. It stays until its replacement is complete."""
        if self.manifest():
            request_replacement(self._home)

    @property
    def is_to_be_replaced(self) -> bool:
        """Whether it was asked for again, or its replacement has yet to take its place."""
        return is_requested(self._home) or is_ready(self._home)

    def to_make(self, lease: Lease) -> "StoredFolder | None":
        """Return what the holder of the lease has to make: the folder, or its replacement; None if it is complete."""
        self.settle(lease)
        if is_requested(self._home):
            return replace(self, is_replacement=True)
        return None if self.manifest() else self

    def settle(self, lease: Lease) -> None:
        """Let a complete replacement, if there is one, take the folder's place. `lease` is the folder's."""
        if not is_ready(self._home):
            return
        lease.check()
        made = replace(self, is_replacement=True).manifest()
        home = replace(self, is_replacement=False)
        take_place(self._home, home._published_names() - set(made.files if made else ()))
        if not self._is_local:
            _move_files(home.path / REPLACEMENT, home.path)

    def _published_names(self) -> set[str]:
        try:
            manifest = self.manifest()
        except UserError:  # damaged, which may be why it is replaced
            return set()
        return set(manifest.files if manifest else ())

    def fetch(self) -> Path:
        """Return the local path of a complete folder, after downloading the files that are not here yet.

        Raises UserError if a file is missing or differs from the one that was published.
        """
        wrong = self._not_fetched()
        if wrong and is_ready(self._home):  # a kill came while its replacement took its place
            with self.held() as lease:
                self.settle(lease)
            wrong = self._not_fetched()
        if wrong:
            raise UserError(
                f"{join_url(self.url, wrong)}: is missing or differs from the file that was published: "
                f"`alm repair {self.url}` makes it again; or delete its manifest.json by hand and run its stage"
            )
        return self.path

    def _not_fetched(self) -> str | None:
        """Download what is not here yet; return the name of a file that is not as it was published."""
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"{self.url}: not complete (it has no manifest): run the stage that writes it")
        files = manifest.files.items()
        return next(
            (name for name, sha in files if not self._holds(name, sha) and not self._downloads(name, sha)), None
        )

    def _holds(self, name: str, sha256: str) -> bool:
        return (self.path / name).is_file() and hash_file(self.path / name) == sha256

    def _downloads(self, name: str, sha256: str) -> bool:
        return not self._is_local and download(join_url(self.url, name), self.path / name) and self._holds(name, sha256)

    def upload(self, name: str) -> None:
        """Copy a file, or a subfolder of the working folder, to the store; does nothing under a local root."""
        if self._is_local:
            return
        local = self.path / name
        files = [file for file in local.rglob("*") if file.is_file()] if local.is_dir() else [local]
        # in the order in which they were written, so that the file that marks the folder complete comes last here too
        for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file)):
            upload(file, join_url(self.url, file.relative_to(self.path).as_posix()))

    def mirror(self, name: str, children: Collection[str], record: str) -> None:
        """Make `children` the subfolders of the stored folder `name`: upload new ones in order, then remove others.

        Subfolders are stored whole: one that an earlier run uploaded only in part, or with another `record` (the file
        in it that names its content), is uploaded again.
        """
        if self._is_local:
            return
        for child in children:
            if not self._stores(f"{name}/{child}", record):
                self.upload(f"{name}/{child}")
        for child in sorted(set(list_folders(join_url(self.url, name))) - set(children)):
            remove(join_url(self.url, name, child))

    def _stores(self, folder: str, record: str) -> bool:
        local, stored = self.path / folder, join_url(self.url, folder)
        if file_sizes(stored) != _file_sizes(local):
            return False
        return read_bytes(join_url(stored, record)) == (local / record).read_bytes()

    def restore(self, name: str) -> None:
        """Download the subfolders of folder `name` that this machine lacks; does nothing under a local root."""
        if self._is_local:
            return
        for child in list_folders(join_url(self.url, name)):
            if not (self.path / name / child).exists():
                self._restore_child(f"{name}/{child}")

    def restore_exactly(self, name: str) -> None:
        """Replace the folder `name` of this machine by the stored one; does nothing under a local root."""
        if not self._is_local:
            shutil.rmtree(self.path / name, ignore_errors=True)
            self.restore(name)

    def _restore_child(self, child: str) -> None:
        files = file_sizes(join_url(self.url, child))
        if not files:  # some object stores still list a folder whose files were removed
            return
        # downloaded beside the folder and moved into it when complete, so that a kill leaves no partial folder
        partial = self.path / ".restoring"
        shutil.rmtree(partial, ignore_errors=True)
        for file in files:
            download(join_url(self.url, child, file), partial / file)
        (self.path / child).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(self.path / child)

    def finish(
        self, results: Mapping[str, Any], lease: Lease | None = None, content: str | None = None
    ) -> FolderManifest:
        """Publish the files of the working folder (without its subfolders), the manifest last.

        `content` is the identity of the tokenizer or model in it. Hidden files are not published: a kill may have left
        temporary ones. Raises UserError, before the manifest, if the lease was lost: another process is publishing its
        own files then.
        """
        lease = lease or Lease(self.url)
        lease.check()
        files = sorted(file for file in self.path.iterdir() if file.is_file() and _is_content(file.name))
        manifest = FolderManifest(
            format_version=FORMAT_VERSION,
            name=self.name,
            identity=dict(self.identity),
            files={file.name: hash_file(file) for file in files},
            sizes={file.name: file.stat().st_size for file in files},
            content=content,
            results=dict(results),
            provenance=dict(self.provenance),
        )
        for file in files:
            self.upload(file.name)
        lease.check()
        url = join_url(self.url, MANIFEST)
        return parse_stored(FolderManifest, url, publish(url, manifest.to_json()))

    def has(self, name: str) -> bool:
        """Return whether the store has a file below the folder `name`."""
        return bool(file_sizes(join_url(self.url, name)))

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it exists, from the store and from this machine."""
        remove(join_url(self.url, name))
        remove(str(self.path / name))


def make_folder(folder: StoredFolder, make: Callable[[StoredFolder, Lease], FolderManifest]) -> FolderManifest:
    """Return the manifest of a folder, which `make` writes if it is not complete, or was asked for again.

    If another process is making the folder, wait for its result.
    """
    # the order matters: a manifest may be damaged, which may be why the folder is to be replaced
    if not folder.is_to_be_replaced and (manifest := folder.manifest()):
        return manifest
    with folder.held() as lease:
        if target := folder.to_make(lease):
            make(target, lease)
            folder.settle(lease)
        manifest = folder.manifest()
    assert manifest
    return manifest


def stored_folder(url: str) -> StoredFolder:
    """Return the complete folder at a URL (<root>/students/<name>), whichever run made it.

    Raises UserError if the folder is not complete, or its manifest is damaged.
    """
    manifest = load_folder_manifest(url)
    if manifest is None:
        raise UserError(f"{url}: not a complete folder (it has no manifest.json); `alm list ROOT` lists all")
    root, kind, name = url.rstrip("/").rsplit("/", 2)
    return StoredFolder(root, folder_kind(kind, url), name.rpartition("-")[0], manifest.identity)


def folder_kind(name: str, url: str) -> FolderKind:
    """Return the kind of this name. Raises UserError naming `url` if there is none."""
    for kind in FOLDER_KINDS:
        if kind == name:
            return kind
    raise UserError(f"{url}: not in a folder {', '.join(FOLDER_KINDS)} of a storage root; `alm list ROOT` lists them")


def working_folder(root: str, kind: str, name: str) -> Path:
    """Return where this machine works on a stored folder: in place on a disk, otherwise in its cache."""
    fs, path = open_filesystem(join_url(root, kind, name))
    # one folder for each root: runs into two roots at once must not work on the same files; a new login changes nothing
    return Path(path) if is_local(fs) else cache_folder() / fingerprint({"root": masked(root)}) / kind / name


def upload_again(root: str, kind: str, manifest: FolderManifest, names: Collection[str]) -> bool:
    """Upload these files of a published folder once more, from this machine's copy.

    Returns False, and uploads nothing, if there is no such copy or its files differ from the published ones.
    """
    copy = working_folder(root, kind, manifest.name)
    url = join_url(root, kind, manifest.name)
    has_copies = all((copy / name).is_file() and hash_file(copy / name) == manifest.files[name] for name in names)
    if is_local(open_filesystem(url)[0]) or not has_copies:
        return False
    for name in names:
        upload(copy / name, join_url(url, name))
    return True


def load_folder_manifest(url: str) -> FolderManifest | None:
    """Read the manifest of the folder at a URL, or return None if there is none. Raises UserError if it is damaged."""
    manifest = join_url(url, MANIFEST)
    content = read_bytes(manifest)
    return None if content is None else parse_stored(FolderManifest, manifest, content)


def _move_files(source: Path, target: Path) -> None:
    """Move the files of a folder of this machine, if it exists, to another one, and remove the rest of it."""
    for file in source.iterdir() if source.is_dir() else ():
        if file.is_file():
            file.replace(target / file.name)
    shutil.rmtree(source, ignore_errors=True)


def _is_content(name: str) -> bool:
    return name != MANIFEST and not name.startswith(".")


def _file_sizes(folder: Path) -> dict[str, int]:
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def cache_folder() -> Path:
    """Return this machine's cache: $ALM_CACHE, or alm-pipeline in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alm-pipeline"
    return Path(os.environ.get("ALM_CACHE") or default)
