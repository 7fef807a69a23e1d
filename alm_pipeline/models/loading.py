"""Models loaded by name onto a device."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from alm_pipeline.models.configuration import model_class, without_layers
from alm_pipeline.models.files import model_folder
from alm_pipeline.models.health.damage import reading_model
from alm_pipeline.models.health.finite_weights import check_finite_weights, first_names
from alm_pipeline.models.health.library_log import load_reports, quiet_transformers
from alm_pipeline.models.health.weights_report import check_stored_types, check_weights, conversion_problem
from alm_pipeline.models.loaded_files import weight_files
from storage.errors import UserError, cause


def load_model(
    name: str,
    dtype: str,
    *,
    trust_remote_code: bool = False,
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    code_revision: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, onto `device`: by default a GPU if there is one.

    With a `device_map`, accelerate decides which part goes to which device. `revision` is the commit of a hub's model,
    and `code_revision` that of another repository that its code comes from. Raises UserError when it can't be loaded,
    when the tensors in its files are not exactly the model's, or when a weight is NaN or infinite.
    """
    place = default_device() if device is None else device_named(device)
    loader = model_class(name, trust_remote_code=trust_remote_code, revision=revision, code_revision=code_revision)
    folder = model_folder(name, revision)
    here = partial(weight_files, name, folder, lambda file: os.path.lexists(folder / file))
    with reading_model(name, folder, here), quiet_transformers(), load_reports() as logged:
        settings = {"device_map": device_map, **_code_settings(trust_remote_code, code_revision)}
        model, report = _from_pretrained(loader, name, folder, logged, dtype, settings)
    check_weights(name, model, report)
    check_stored_types(name, model, [folder / file for file in here() if file.endswith(".safetensors")])
    if device_map is None:
        model.to(place)  # type: ignore[arg-type]  # torch.nn.Module.to takes a device
    check_finite_weights(model, name)
    model.eval()
    return model


def load_head_model(
    name: str,
    config: PreTrainedConfig,
    dtype: str,
    *,
    trust_remote_code: bool = False,
    device: str | None = None,
    revision: str | None = None,
    code_revision: str | None = None,
) -> PreTrainedModel:
    """Load a model of this configuration without its layers: its embedding, last norm and head, onto `device`.

    Of a large model that is a small part, and as its own class computes it. A quantized model's head is loaded if it is
    stored as real numbers. Raises UserError as `load_model` does, and if the head is quantized.
    """
    place = default_device() if device is None else device_named(device)
    loader = model_class(name, trust_remote_code=trust_remote_code, revision=revision, code_revision=code_revision)
    folder = model_folder(name, revision)
    here = partial(weight_files, name, folder, lambda file: os.path.lexists(folder / file))
    settings = {"config": without_layers(config), **_code_settings(trust_remote_code, code_revision)}
    with reading_model(name, folder, here), quiet_transformers(), load_reports() as logged, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # tables with a part for each layer
        model, report = _from_pretrained(loader, name, folder, logged, dtype, settings)
    if report["missing_keys"] and getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"{name}: its head is quantized too ({first_names(report['missing_keys'])} are not stored as real numbers),"
            " so it can't be computed outside of the engine: set score.served.hidden_states to false, and use the "
            "plugin alm-scores"
        )
    check_weights(name, model, _without_layers_in(report, model))
    model.to(place)  # type: ignore[arg-type]  # torch.nn.Module.to takes a device
    check_finite_weights(model, name)
    model.eval()
    return model


def _without_layers_in(report: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Return a report about weights without what the layers would have used: whole tensors, and parts of tables."""
    head: Any = model.get_output_embeddings()
    own = {id(value) for value in head.parameters()} if head is not None else set()
    names = {key for key, value in model.named_parameters(remove_duplicate=False) if id(value) in own}
    mismatched = [found for found in report["mismatched_keys"] if found[0] in names]
    return {**report, "unexpected_keys": [], "mismatched_keys": mismatched}


def _code_settings(trust_remote_code: bool, code_revision: str | None) -> dict[str, Any]:
    """Return what `from_pretrained` has to know of a model's own code."""
    # only an automatic class takes a revision of the code
    return {"trust_remote_code": trust_remote_code, **({"code_revision": code_revision} if code_revision else {})}


def _from_pretrained(
    loader: Any,
    name: str,
    folder: Path,
    logged: Sequence[str],
    dtype: str,
    settings: dict[str, Any],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model and the report about its weights, in which tensors of other shapes are not an error yet."""
    try:
        return loader.from_pretrained(  # type: ignore[no-any-return]
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,  # no other weights are hashed
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **settings,
        )
    except Exception as error:
        if not settings["trust_remote_code"] and "trust_remote_code" in str(error):
            raise UserError(
                f"{name}: comes with its own code, as a student with n-gram embeddings does: if you trust it, set "
                "trust_remote_code to true"
            ) from error
        if problem := conversion_problem(logged):
            raise UserError(
                f"{name}: its weights can't be converted for this version of transformers ({problem}): use the "
                "config.json that was saved with them"
            ) from error
        raise


def device_named(name: str) -> torch.device:
    """Return the device of this name. Raises UserError if this machine has none."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter if torch was built without support for the device
        raise UserError(f"{name}: this machine has no such device ({cause(error)})") from error


def require_device(name: str | None) -> None:
    """Raise UserError if this machine has no device of this name; None is its default one."""
    if name is not None:
        device_named(name)


def default_device() -> torch.device:
    """Return the GPU if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def all_devices() -> tuple[str, ...]:
    """Return the names of all GPUs, or the processor's if there is none."""
    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) or ("cpu",)


@contextlib.contextmanager
def matmul_precision(precision: Literal["highest", "medium"]) -> Iterator[None]:
    """Set how float32 matrices are multiplied: `medium` rounds the factors to bfloat16 and sums in float32.

    Factors that were bfloat16 before lose nothing, and a processor with bfloat16 units is twice as fast.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "cache_implementation")
"""the settings for generation that say what the model's tokens are and how it computes, but not what it chooses"""


@contextlib.contextmanager
def generating_as_asked(model: PreTrainedModel) -> Iterator[None]:
    """Let `model.generate` obey its arguments alone inside the context.

    Where an argument is None, transformers takes the setting that comes with the model (generation_config.json): a
    penalty of repetitions, tokens that are suppressed, a least length. Then the likeliest token is not always taken.
    """
    own: Any = model.generation_config
    kept = {name: getattr(own, name, None) for name in _KEPT}
    model.generation_config = GenerationConfig(**{name: value for name, value in kept.items() if value is not None})
    try:
        yield
    finally:
        model.generation_config = own


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the number of tokens that the model can read and predict: the rows of its input embedding or of its head.

    The embedding has more of them in Llama 3.2 Vision, whose `<|image|>` is never predicted.
    """
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    rows = int(weight.shape[0])
    # out_features: a quantized layer's weight is packed
    return min(rows, int(getattr(model.get_output_embeddings(), "out_features", rows)))
