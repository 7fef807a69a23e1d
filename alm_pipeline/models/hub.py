"""What the Hugging Face hub knows of a model without its weights being fetched."""

from pathlib import Path

from alm_pipeline.models.loaded_files import weight_files
from storage.fingerprints import hash_file


def hub_weight_hashes(name: str, folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights of a hub's model, and of their index.

    `folder` is the local snapshot of the commit, with at least the small files. Empty if the hub does not report the
    hashes of all weights, or can't be reached. Raises UserError if there are no weights.
    """
    from huggingface_hub import HfApi  # importing it takes a third of a second

    try:
        # not list_repo_tree, which tries for half a minute to reach a hub
        listed = HfApi().model_info(name, revision=folder.name, files_metadata=True).siblings or []
    except Exception as error:
        if not isinstance(error, OSError) and not is_network_error(error):
            raise
        return {}
    large = {file.rfilename: file.lfs.sha256 for file in listed if file.lfs}
    names = {file.rfilename for file in listed}
    weights = weight_files(name, folder, names.__contains__)
    here = {file: hash_file(folder / file) for file in weights if file not in large and (folder / file).is_file()}
    hashes = here | {file: large[file] for file in weights if file in large}
    return hashes if hashes.keys() >= set(weights) else {}


def is_network_error(error: Exception) -> bool:
    """Return whether the error comes from one of the HTTP clients that the hub's package uses."""
    return type(error).__module__.startswith(("httpx", "requests", "httpcore"))
