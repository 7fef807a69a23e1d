"""What a model does with the output of a place, found out by running it: no list of architectures has to be kept.

Shapes: T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alm_pipeline.editing.directions.places import decoder_layers, first_tensor
from alm_pipeline.editing.directions.stage import PlaceSpectrum
from alm_pipeline.models.output_head import hidden_states, input_device
from storage.errors import UserError

_FACTOR = 2.0
_UNCHANGED = 1e-3
"""relative difference up to which an output counts as the same: the ε of a norm is in it"""


@dataclass(frozen=True)
class Probe:
    """How a place's output is made and used."""

    write: str | None
    """the dotted name of the linear layer whose output is the place's; None if there is none"""
    ignores_scale: bool
    """whether a norm after the place removes every token's scale, as in Gemma's layers"""
    layer_type: str


@torch.inference_mode()
def probe(model: PreTrainedModel, place: PlaceSpectrum, ids_T: Tensor) -> Probe:
    """Find out how the output of a place is made and used, by running the model on some ids.

    Raises UserError if it contains the residual stream, which an edit would edit as well.
    """
    layer = decoder_layers(model)[1][place.layer]
    outputs: dict[str, Tensor] = {}
    linear = {
        name: module
        for name, module in model.get_submodule(place.module).named_modules(prefix=place.module)
        if isinstance(module, nn.Linear | Conv1D)
    }
    watched = {**linear, "place": model.get_submodule(place.module), "layer": layer}
    _run(model, ids_T, [(module, partial(_keep, outputs, name)) for name, module in watched.items()])
    before = outputs["layer"]
    if place.part != "layer" and _same(outputs["place"], before):
        raise UserError(
            f"layer {place.layer}: {type(layer).__name__} adds the residual stream inside of its {place.part}: set "
            "where to residual"
        )
    write = next((name for name in reversed(linear) if _same(outputs.get(name), outputs["place"])), None)
    _run(model, ids_T, [(watched["place"], _scaled), (layer, partial(_keep, outputs, "layer"))])
    ignores_scale = place.part != "layer" and _same(outputs["layer"], before)
    return Probe(write, ignores_scale, type(layer).__name__)


def _run(model: PreTrainedModel, ids_T: Tensor, hooks: Sequence[tuple[nn.Module, Any]]) -> None:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        hidden_states(model, ids_T[None].to(input_device(model)))
    finally:
        for handle in handles:
            handle.remove()


def _keep(outputs: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    outputs[name] = first_tensor(output).float().clone()


def _scaled(module: nn.Module, inputs: Any, output: Any) -> Any:
    scaled = first_tensor(output) * _FACTOR
    return type(output)((scaled, *output[1:])) if isinstance(output, tuple | list) else scaled


def _same(found: Tensor | None, expected: Tensor) -> bool:
    if found is None or found.numel() != expected.numel():
        return False
    difference = found.reshape(expected.shape) - expected
    return bool(difference.norm() <= _UNCHANGED * expected.norm())
