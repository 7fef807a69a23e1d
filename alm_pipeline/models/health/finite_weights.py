"""Finds weights that are NaN or infinite, by name: a damaged file, a training that diverged, or an overflow in float16.

One pass over the weights that copies nothing: a tenth of a second per GB on a processor.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from transformers import PreTrainedModel

from storage.errors import UserError

_NAMED = 3


def is_finite(values: Tensor) -> Tensor:
    """Return whether all values are finite, as a scalar on their device, so that nothing waits for it."""
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    # the extremes are NaN if any value is; types of 8 bits have no extremes
    low, high = (values.float() if values.dtype.itemsize == 1 else values).detach().aminmax()
    return low.isfinite() & high.isfinite()


def check_finite_weights(model: PreTrainedModel, name: str) -> None:
    """Raise UserError if a weight is NaN or infinite. `name` is the model's, for the error."""
    wrong = [weight for weight, finite in _flags(model) if not finite]
    if wrong:
        dtype = str(model.dtype).removeprefix("torch.")
        smaller = f", or exceed the range of {dtype}: load it in bfloat16 or float32 (score.dtype, or --dtype)"
        raise UserError(
            f"{name}: weights are NaN or infinite: {first_names(wrong)}: they are damaged, or were saved after a "
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
