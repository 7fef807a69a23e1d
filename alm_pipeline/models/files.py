"""The files of models and tokenizers by name: a folder, a Hugging Face hub name, or `demo:NAME`. Without torch."""

import re
from pathlib import Path

from alm_pipeline.config import BYTES
from alm_pipeline.config.fields.spelling import nearest_with_meaning
from storage.errors import UserError, cause

SMALL_FILES = ("*.json", "*.jinja")
CODE = "*.py"
_WEIGHTS = "*.safetensors"
_DEMO = "demo:"


def model_folder(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a model, downloading or converting it first if needed.

    `revision` is the commit of a hub's model; by default the main branch's. Raises UserError when the folder does not
    exist or can't be fetched.
    """
    return fetch_folder(name, (*SMALL_FILES, _WEIGHTS, CODE, "README.md"), revision)


def tokenizer_files(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a tokenizer and of a model's configuration, without fetching the model's weights.

    Takes the arguments of `model_folder`, and raises UserError as it does.
    """
    return fetch_folder(name, SMALL_FILES, revision)


def fetch_folder(name: str, files: tuple[str, ...], revision: str | None = None) -> Path:
    """Return the local folder of that name; of a hub's model, only the files that match a pattern are fetched.

    A hub's folder is named by its commit, and never changes. Raises UserError as `model_folder` does.
    """
    if name.startswith(_DEMO):
        from alm_pipeline.models.demo.models import demo_model

        return demo_model(name.removeprefix(_DEMO))
    if not is_on_hub(name):
        return Path(name)
    from huggingface_hub import snapshot_download  # importing it takes a third of a second
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:  # which asks for another kind of name, where a path is misspelt
        raise UserError(
            f"{name}: not a local folder, and can't be a name on the Hub, such as `google/gemma-3-270m`{_nearest(name)}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name}: not a local folder, and could not be fetched from the Hub ({cause(error)}){_nearest(name)}"
        ) from error


def _nearest(name: str) -> str:
    """Return the names, of what is on this machine, that a name is likely meant to be."""
    from alm_pipeline.models.demo.models import DEMO_MODELS

    known = {BYTES: "as a tokenizer", **dict.fromkeys((f"{_DEMO}{demo}" for demo in DEMO_MODELS), "")}
    path = Path(name)
    if path.parent.is_dir():
        known |= dict.fromkeys((str(folder) for folder in path.parent.iterdir() if folder.is_dir()), "")
    return nearest_with_meaning(name, known)


def is_on_hub(name: str) -> bool:
    """Return whether the name can only be a hub's: it is neither a demo model nor a local folder."""
    return not name.startswith(_DEMO) and not Path(name).is_dir()


def label(name: str) -> str:
    """Return a short readable name for folders: the last part of a path or hub name, without a fingerprint."""
    last = name.removeprefix(_DEMO).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"-[0-9a-f]{16}$", "", last)
