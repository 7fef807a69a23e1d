"""What identifies the content of a source, wherever it is stored."""

import re
from importlib import metadata
from pathlib import Path

from alm_pipeline.config import HubSource
from alm_pipeline.corpus.files.listing import CorpusFile
from alm_pipeline.corpus.files.saved_datasets import saved_split
from storage.errors import UserError, cause, user_error
from storage.urls import open_filesystem

_COMMIT = re.compile(r"[0-9a-f]{40}")


def saved_folder(source: HubSource) -> str | None:
    """Return the local folder that `save_to_disk` wrote; of several splits, the source's.

    None if the name is not such a folder. Raises UserError if it has several splits, and not that one.
    """
    if not Path(source.name).is_dir():
        return None
    fs, root = open_filesystem(source.name)
    return saved_split(fs, root, source.split)


def local_files(source: HubSource) -> list[CorpusFile] | None:
    """Return the files of a local folder that `datasets` reads, sorted by name; None for a dataset of the Hub.

    Raises UserError if the name is a file's.
    """
    folder = Path(source.name)
    if folder.is_file():
        raise UserError(f"{folder} is a file: set corpus.source.kind to files, and corpus.source.urls to it")
    if not folder.is_dir():
        return None
    fs, root = open_filesystem(str(folder))
    with user_error(f"cannot list {folder}", "check its permissions"):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    names = [path.relative_to(folder).as_posix() for path in files]
    return [CorpusFile(fs, f"{root}/{name}", root, name, "text") for name in names]


def _is_hidden(path: Path, folder: Path) -> bool:
    # `datasets` does not read these files either
    return any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)


def hub_commit(source: HubSource) -> str:
    """Return the commit that the revision (by default the main branch) points to now.

    Raises UserError if the Hub cannot be reached, or has no such dataset.
    """
    if source.revision and _COMMIT.fullmatch(source.revision):
        return source.revision
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(source.name, revision=source.revision).sha
    except Exception as error:  # connections fail with many types
        raise UserError(
            f"cannot get the commit of dataset {source.name!r} from the Hugging Face Hub: {cause(error)}; "
            "check the name and the connection, or set corpus.source.revision to a commit (40 hex digits)"
        ) from error
    return str(commit)


def reasoning_gym_version() -> str:
    """Return the version of the generator. Raises UserError if it is not installed."""
    try:
        return metadata.version("reasoning-gym")
    except metadata.PackageNotFoundError as error:
        raise UserError("corpus.source needs the package reasoning-gym: pip install 'alm-pipeline[demo]'") from error
