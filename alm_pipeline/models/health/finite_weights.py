"""Finds weights that are NaN or infinite, by name: a damaged file, a training that diverged, or an overflow in float16.

One pass over the weights that copies nothing: a tenth of a second per GB on a processor.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate.utils import align_module_device
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from storage.errors import UserError

_NAMED = 3
_PARAMETERS = (".weight", ".bias")
_EXPONENTS = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
"""the bits of the largest exponent, which only infinities and NaN have"""


def is_finite(values: Tensor) -> Tensor:
    """Return whether all values are finite, as a scalar on their device, so that nothing waits for it."""
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    values = values.detach()
    if values.dtype in _EXPONENTS:  # as integers: a processor takes a tenth of the time
        return values.view(torch.int16).bitwise_and(0x7FFF).max() < _EXPONENTS[values.dtype]
    # the extremes are NaN if any value is; types of 8 bits have no extremes
    low, high = (values.float() if values.dtype.itemsize == 1 else values).aminmax()
    return low.isfinite() & high.isfinite()


def check_finite_weights(model: PreTrainedModel, name: str) -> None:
    """Raise UserError if a weight is NaN or infinite. `name` is the model's, for the error."""
    wrong = [weight for weight, finite in _flags(model) if not finite]
    if wrong:
        raise _not_finite(wrong, name, str(model.dtype).removeprefix("torch."))


def check_finite_files(files: Iterable[Path], name: str, dtype: str) -> None:
    """Raise UserError as `check_finite_weights` does for weights that are loaded in `dtype`, without their model."""
    if wrong := not_finite_in(files, dtype):
        raise _not_finite(wrong, name, dtype)


def not_finite_in(files: Iterable[Path], dtype: str) -> list[str]:
    """Return the names of the weights that are NaN or infinite in `dtype`. One is in memory at a time.

    The files are whole safetensors files. Of other names than those of nearly all parameters it is not known here
    whether the model uses them: older models stored masks, with infinities.
    """
    wrong = list[str]()
    for file in files:
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  # a safetensors file is not a mapping
                if not key.endswith(_PARAMETERS):
                    continue
                value: Tensor = stored.get_tensor(key)
                if value.is_floating_point() and not is_finite(value.half() if dtype == "float16" else value):
                    wrong.append(key)
    return wrong


def _not_finite(names: Iterable[str], name: str, dtype: str) -> UserError:
    smaller = f", or exceed the range of {dtype}: load it in bfloat16 or float32 (score.dtype, or --dtype)"
    return UserError(
        f"{name}: weights are NaN or infinite: {first_names(names)}: they are damaged, or were saved after a "
        f"training had diverged: fetch or train the model again{smaller if dtype == 'float16' else ''}"
    )


def first_names(names: Iterable[str]) -> str:
    """Return the first three names for an error, and the number of the others."""
    ordered = sorted(names)
    more = len(ordered) - _NAMED
    return ", ".join(ordered[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _flags(model: PreTrainedModel) -> list[tuple[str, bool]]:
    names, flags = list[str](), list[Tensor]()
    for name, weight in _weights(model):
        names.append(name)
        flags.append(is_finite(weight))
    # read in one go per device, because each waits for the device
    devices = {flag.device for flag in flags}
    values = {device: torch.stack([flag for flag in flags if flag.device == device]).tolist() for device in devices}
    return [(name, values[flag.device].pop(0)) for name, flag in zip(names, flags, strict=True)]


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point parameters by name, each once, including those that accelerate has left on disk."""
    seen = set[int]()
    for module_name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or seen.issuperset(map(id, own.values())):
            continue
        on_disk = any(value.device.type == "meta" for value in own.values())
        with align_module_device(module) if on_disk else contextlib.nullcontext():
            for name, value in module.named_parameters(recurse=False):
                if id(own[name]) not in seen and value.is_floating_point():
                    yield f"{module_name}.{name}".removeprefix("."), value
        seen.update(map(id, own.values()))
