"""The tensors of a model's folder, read one at a time and written one file at a time."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alm_pipeline.models.health.damage import check_weights_file
from alm_pipeline.models.health.finite_weights import is_finite
from alm_pipeline.models.reference import ModelReference
from storage.errors import UserError, user_error

SHARD_BYTES = 2**30
_INDEX = "model.safetensors.index.json"


class Weights:
    """A model's tensors by name; a context manager.

    They are those that transformers loads. Raises UserError if the folder has none.
    """

    def __init__(self, model: ModelReference) -> None:
        self.name, self._stack = model.name, ExitStack()
        self._files: dict[str, Any] = {}
        for file in model.weights():
            check_weights_file(file)
            with user_error(f"{file}: can't be opened", "fetch it again, or save the model again (save_pretrained)"):
                opened = self._stack.enter_context(safe_open(file, framework="pt"))
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def is_floating_point(self, name: str) -> bool:
        """Return whether the tensor holds floating-point numbers that fill a byte or more (F4 is packed)."""
        dtype: str = self._files[name].get_slice(name).get_dtype()
        return dtype in ("F64", "F32", "F16", "BF16")

    def read(self, name: str) -> Tensor:
        """Return the tensor as it is stored. Raises UserError if a value is NaN or infinite."""
        tensor: Tensor = self._files[name].get_tensor(name)
        if tensor.is_floating_point() and not is_finite(tensor):
            raise UserError(
                f"{self.name}: {name} has weights that are NaN or infinite: they are damaged, or were saved after a "
                "training had diverged: fetch or train the model again"
            )
        return tensor


def write_weights(folder: Path, sizes: Mapping[str, int], tensor: Callable[[str], Tensor], dtype: torch.dtype) -> None:
    """Write tensors as transformers does, in files of 1 GiB; at most one file's tensors are in memory.

    `sizes` is the number of values of each tensor by name, in the order in which `tensor` makes them. Raises UserError
    if a value exceeds the range of `dtype`.
    """
    shards = _shards(sizes, dtype.itemsize)
    files: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        save_file({name: _stored(tensor, name, dtype) for name in names}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values()) * dtype.itemsize}, "weight_map": files}
        (folder / _INDEX).write_text(json.dumps(index, indent=2))


def _stored(tensor: Callable[[str], Tensor], name: str, dtype: torch.dtype) -> Tensor:
    values = tensor(name).to(dtype).contiguous()
    if not is_finite(values):
        raise UserError(
            f"{name}: a weight exceeds the range of {str(dtype).removeprefix('torch.')}: use a scale or weight that is "
            "nearer to 1"
        )
    return values


def _shards(sizes: Mapping[str, int], itemsize: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    shard_bytes = 0
    for name, size in sizes.items():
        if shards[-1] and shard_bytes + size * itemsize > SHARD_BYTES:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(name)
        shard_bytes += size * itemsize
    return shards
