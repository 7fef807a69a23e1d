"""Models and tokenizers by name: a folder, a Hugging Face hub name, or `demo:NAME`."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from alm_pipeline.tokenization.normalization import NFC, TextForm, text_forms
from storage.errors import UserError
from storage.identity import MODEL_FILES, TOKENIZER_FILES, hash_files

_DEMO = "demo:"
# what configurations call the most tokens: most models, GPT-2 and its like, MPT
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")


def model_folder(name: str) -> Path:
    """The local folder of a model or tokenizer, downloaded or converted first where need be.

    Raises UserError when there is no such folder or it can't be fetched.
    """
    if name.startswith(_DEMO):
        from alm_pipeline.demo_models import demo_model

        return demo_model(name.removeprefix(_DEMO))
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.py", "README.md"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name}: no such folder, and not to be had from the model hub ({first_line(error)})"
        ) from error


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
    state = json.loads(_tokenizer_file(name).read_text(encoding="utf-8"))
    return text_forms(state["normalizer"], state["decoder"])


def common_forms(names: Iterable[str]) -> tuple[str, ...]:
    """The forms that all these tokenizers leave as they are: NFC, and what else each makes of texts."""
    forms = [form for name in names for form in tokenizer_forms(name)]
    return tuple(dict.fromkeys(form.serialized for form in [NFC, *forms]))


def _tokenizer_file(name: str) -> Path:
    file = model_folder(name) / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{name}: has no tokenizer.json: save a fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    return file


def load_model(
    name: str,
    dtype: str,
    *,
    trust_remote_code: bool = False,
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, on `device`, by default the GPU where there is one.

    With a `device_map`, in the parts and at the places that accelerate makes of it.
    """
    place = _device(device)
    folder = model_folder(name)
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code, device_map=device_map
            )
    except (OSError, ValueError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise UserError(
                f"{name}: carries code of its own, as a student with n-gram embeddings does: if you trust it, set "
                "trust_remote_code to true"
            ) from error
        raise UserError(f"{name}: can't be loaded as a causal language model: {first_line(error)}") from error
    if device_map is None:
        model.to(place)  # type: ignore[arg-type]  # torch.nn.Module.to takes a device
    model.eval()
    return model


def _device(name: str | None) -> torch.device:
    if name is None:
        return default_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without the device's kind
        raise UserError(f"{name}: no such device on this machine ({first_line(error)})") from error


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def all_devices() -> tuple[str, ...]:
    """Every GPU, or the processor where there is none."""
    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) or ("cpu",)


@contextlib.contextmanager
def matmul_precision(precision: Literal["highest", "medium"]) -> Iterator[None]:
    """How float32 matrices are multiplied: `medium` rounds the factors to bfloat16 and sums in float32.

    Factors that come from bfloat16 lose nothing by it, and a processor with bfloat16 units is twice as fast.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
    """A hash of the model's weights and configuration, wherever they lie."""
    return hash_files(model_folder(name), MODEL_FILES)


def tokenizer_identity(name: str) -> str:
    """A hash of the tokenizer's files, wherever they lie."""
    return hash_files(model_folder(name), TOKENIZER_FILES)


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
    file = model_folder(name) / "config.json"
    if not file.is_file():
        raise UserError(f"{name}: has no config.json: it is not a model's folder")
    config: dict[str, Any] = json.loads(file.read_text())
    return {**config, **config.get("text_config", {})}


def embedding_rows(model: PreTrainedModel) -> int:
    """How many ids the model's input embedding takes."""
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return int(weight.shape[0])


def label(name: str) -> str:
    """A short readable name for folders: the last part of a path or hub name, without a fingerprint."""
    last = name.removeprefix(_DEMO).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"-[0-9a-f]{16}$", "", last)
