"""What the Hugging Face hub knows of a model without its weights being fetched."""

from fnmatch import fnmatch

from huggingface_hub import HfApi

from alm_pipeline.models.files import CODE, SMALL_FILES, fetch_folder
from storage.fingerprints import MODEL_FILES, MODEL_WEIGHTS, hash_by_name


def hub_hashes(name: str) -> dict[str, str]:
    """Return the SHA-256 of every file that decides a hub's model.

    Empty if the hub does not report the hashes of all weights, or can't be reached.
    """
    folder = fetch_folder(name, (*SMALL_FILES, CODE))
    try:
        # not list_repo_tree, which tries for half a minute to reach a hub
        listed = HfApi().model_info(name, revision=folder.name, files_metadata=True).siblings or []
    except Exception as error:
        if not isinstance(error, OSError) and not is_network_error(error):
            raise
        return {}
    weights = [file for file in listed if "/" not in file.rfilename and fnmatch(file.rfilename, MODEL_WEIGHTS)]
    hashes = {file.rfilename: file.lfs.sha256 for file in weights if file.lfs}
    if not weights or len(hashes) < len(weights):
        return {}
    return hash_by_name(folder, tuple(pattern for pattern in MODEL_FILES if pattern != MODEL_WEIGHTS)) | hashes


def is_network_error(error: Exception) -> bool:
    """Return whether the error comes from one of the HTTP clients that the hub's package uses."""
    return type(error).__module__.startswith(("httpx", "requests", "httpcore"))
