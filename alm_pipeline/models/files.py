"""The files of models and tokenizers by name: a folder, a Hugging Face hub name, or `demo:NAME`. Without torch."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from alm_pipeline.vocabulary.text_forms import NFC, TextForm, text_forms
from storage.errors import UserError
from storage.fingerprints import MODEL_FILES, MODEL_WEIGHTS, TOKENIZER_FILES, combine_hashes, hash_each, hash_files

_DEMO = "demo:"
_SMALL_FILES = ("*.json", "*.jinja")
_CODE = "*.py"
# what configurations call the most tokens: most models, GPT-2 and its like, MPT
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")


def model_folder(name: str) -> Path:
    """The local folder of a model, downloaded or converted first where need be.

    Raises UserError when there is no such folder or it can't be fetched.
    """
    return _folder(name, (*_SMALL_FILES, MODEL_WEIGHTS, _CODE, "README.md"))


def tokenizer_files(name: str) -> Path:
    """The local folder of a tokenizer and of a model's configuration, without fetching the model's weights.

    Raises UserError as `model_folder`.
    """
    return _folder(name, _SMALL_FILES)


def _folder(name: str, files: tuple[str, ...]) -> Path:
    if name.startswith(_DEMO):
        from alm_pipeline.models.demo import demo_model

        return demo_model(name.removeprefix(_DEMO))
    if not _is_on_hub(name):
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name}: no such folder, and not to be had from the model hub ({first_line(error)})"
        ) from error


def _is_on_hub(name: str) -> bool:
    return not name.startswith(_DEMO) and not Path(name).is_dir()


def first_line(error: Exception) -> str:
    """What the error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A fast tokenizer, exactly as its tokenizer.json says (AutoTokenizer rebuilds some with other ids)."""
    folder = _tokenizer_file(name).parent
    with quiet_transformers():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def tokenizer_forms(name: str) -> tuple[TextForm, ...]:
    """What the tokenizer's normalizer makes of texts, without loading the tokenizer."""
    state = _beside_model(_tokenizer_file(name).read_text(encoding="utf-8"))
    return text_forms(state["normalizer"], state["decoder"])


def _beside_model(text: str) -> dict[str, Any]:
    """A tokenizer.json's parts, where it can be without the model: its vocabulary takes seconds to parse."""
    before = re.split(r',\s*"model"\s*:', text, maxsplit=1)[0]
    with contextlib.suppress(ValueError):
        # only the outermost object is whole with one more brace; `tokenizers` writes the model last
        state: dict[str, Any] = json.loads(before + "}")
        if {"normalizer", "decoder"} <= state.keys():
            return state
    return dict(json.loads(text))


def common_forms(names: Iterable[str]) -> tuple[str, ...]:
    """The forms that all these tokenizers leave as they are: NFC, and what else each makes of texts."""
    forms = [form for name in names for form in tokenizer_forms(name)]
    return tuple(dict.fromkeys(form.serialized for form in [NFC, *forms]))


def _tokenizer_file(name: str) -> Path:
    file = tokenizer_files(name) / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{name}: has no tokenizer.json: save a fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    return file


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars and advice: this project shows its own progress."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def model_identity(name: str) -> str:
    """A hash of the model's weights and configuration, wherever they lie.

    Of a hub's model the hub knows the weights' hashes: whoever only names it fetches none. Raises UserError for a
    folder without weights: all such folders would be one model.
    """
    if _is_on_hub(name) and (hashes := _hub_hashes(name)):
        return combine_hashes(hashes)
    folder = model_folder(name)
    if not any(folder.glob(MODEL_WEIGHTS)):
        raise UserError(
            f"{name}: holds no weights ({MODEL_WEIGHTS}): load and save it with transformers (save_pretrained) first, "
            "or, where it comes from a hub, fetch them while online"
        )
    return hash_files(folder, MODEL_FILES)


def _hub_hashes(name: str) -> dict[str, str]:
    """SHA-256s of what the model is known by; none where the hub does not tell those of its weights."""
    folder = _folder(name, (*_SMALL_FILES, _CODE))
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
    return hash_each(folder, tuple(pattern for pattern in MODEL_FILES if pattern != MODEL_WEIGHTS)) | hashes


def is_network_error(error: Exception) -> bool:
    """Of whichever client the hub's package uses."""
    return type(error).__module__.startswith(("httpx", "requests", "httpcore"))


def tokenizer_identity(name: str) -> str:
    """A hash of the tokenizer's files, wherever they lie."""
    return hash_files(tokenizer_files(name), TOKENIZER_FILES)


def vocabulary_rows(name: str) -> int:
    """The rows of the model's embedding, as its configuration says."""
    return int(_config(name)["vocab_size"])


def weights_dtype(name: str) -> str:
    """What the model's weights are stored in; float32 where that is untold, or neither bfloat16 nor float16."""
    config = _config(name)
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def context_length(name: str) -> int | None:
    """The most tokens the model takes, or None where its configuration does not say."""
    return length_in(_config(name))


def length_in(config: Mapping[str, Any]) -> int | None:
    """The most tokens that a model of this configuration takes, or None where it does not say."""
    length = next((config[key] for key in _LENGTHS if config.get(key)), None)
    return int(length) if length else None


def _config(name: str) -> dict[str, Any]:
    file = tokenizer_files(name) / "config.json"
    if not file.is_file():
        raise UserError(f"{name}: has no config.json: it is not a model's folder")
    config: dict[str, Any] = json.loads(file.read_text())
    return {**config, **config.get("text_config", {})}


def label(name: str) -> str:
    """A short readable name for folders: the last part of a path or hub name, without a fingerprint."""
    last = name.removeprefix(_DEMO).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"-[0-9a-f]{16}$", "", last)
