"""A fingerprint of the content of a source, wherever it is stored."""

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any, assert_never

from alm_pipeline.config import FilesSource, GeneratedSource, HubSource, Source
from alm_pipeline.corpus.errors import failing_as, one_line
from alm_pipeline.corpus.files import CorpusFile, format_of, list_files
from storage.errors import UserError
from storage.fingerprints import hash_file

# the keys of stored checksums: S3, HTTP and Azure; Google; the Hugging Face Hub
_CHECKSUM_KEYS = ("ETag", "etag", "md5Hash", "blob_id")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def source_identity(source: Source) -> str:
    """Return a hex fingerprint of the content that the source refers to. Raises UserError if that is unknown.

    It covers, for files, their names (see `files`), formats and contents (for remote files the store's checksum, if it
    has one); for a Hub dataset, the commit; for a local folder that `datasets` reads, its files; for generated
    problems, their settings and the generator's version. Where data is stored is not part of it.
    """
    content = json.dumps([source.kind, _content(source)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _content(source: Source) -> Any:
    match source:
        case FilesSource():
            return [[file.name, format_of(file, source), _file_content(file)] for file in list_files(source)]
        case HubSource():
            return [source.subset, source.split, _hub_content(source)]
        case GeneratedSource():
            return [source.task, source.size, source.seed, _reasoning_gym_version()]
        case _:
            assert_never(source)


def _file_content(file: CorpusFile) -> list[str | int]:
    with failing_as(f"cannot read {file.url}", "fix or remove the file, or exclude it with corpus.source.exclude"):
        info = file.fs.info(file.path)
        for key in _CHECKSUM_KEYS:
            if info.get(key):
                return [info["size"], str(info[key])]
        with file.fs.open(file.path, "rb") as stream:
            return [hashlib.file_digest(stream, "sha256").hexdigest()]


def _hub_content(source: HubSource) -> Any:
    folder = Path(source.name)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
        return [[path.relative_to(folder).as_posix(), _path_sha256(path)] for path in files]
    return [source.name, _commit(source)]


def _is_hidden(path: Path, folder: Path) -> bool:
    # `datasets` does not read these files either
    return any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)


def _path_sha256(path: Path) -> str:
    with failing_as(f"cannot read {path}", "fix or remove the file"):
        return hash_file(path)


def _commit(source: HubSource) -> str:
    """Return the commit that the revision (by default the main branch) points to now."""
    if source.revision and _COMMIT.fullmatch(source.revision):
        return source.revision
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(source.name, revision=source.revision).sha
    except Exception as error:  # connections fail with many types
        raise UserError(
            f"cannot get the commit of dataset {source.name!r} from the Hugging Face Hub: {one_line(error)}; "
            "check the name and the connection, or set corpus.source.revision to a commit (40 hex digits)"
        ) from error
    return str(commit)


def _reasoning_gym_version() -> str:
    try:
        return metadata.version("reasoning-gym")
    except metadata.PackageNotFoundError as error:
        raise UserError("corpus.source needs the package reasoning-gym: pip install 'alm-pipeline[demo]'") from error
