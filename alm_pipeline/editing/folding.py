"""Folds edits into the weights that write the edited outputs, so that the result is an ordinary model.

With M = P + Q and the layer o = W a + b that writes an output, W ← c M W and b ← c M b. Where a norm follows the output
(Gemma 2 and 3), it removes every token's scale, and this is exactly the edit that keeps the norm. Elsewhere the scale
‖o‖ / ‖M o‖ differs by token, and its mean c takes its place: refused where it spreads over more than `MOST_SPREAD`. A
shift is a bias, which some architectures have to be configured for.

Shapes: D width, I width of the written layer's input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alm_pipeline.editing.directions.modeling_edited import Edit
from alm_pipeline.editing.edits import PlacedEdit, Scale
from alm_pipeline.editing.probes import Probe
from alm_pipeline.models.configuration import empty_model, text_config

MOST_SPREAD = 0.05
"""the standard deviation of a scale over tokens, as a share of its mean, up to which a constant may take its place"""
_BIAS_SETTINGS = {"mlp": "mlp_bias", "attention": "attention_bias"}
"""the settings that give all linear layers of a part a bias"""


@dataclass(frozen=True)
class Folding:
    """How the edit of a place becomes part of the weights."""

    place: str
    write: str
    exact: bool
    """whether the folded edit is the edit itself, and not one with a constant scale"""
    scale: float
    spread: float
    """of the scale over tokens, as a share; 0 for a shift"""


def plan_folding(
    model: PreTrainedModel, edits: Sequence[PlacedEdit], probes: Mapping[str, Probe], scales: Mapping[str, Scale]
) -> list[Folding] | str:
    """Return how to fold every edit, or why one of them can't be folded."""
    planned: list[Folding] = []
    for each in edits:
        found = _plan(model, each, probes[each.place.place], scales.get(each.place.place))
        if isinstance(found, str):
            return f"layer {each.place.layer} ({probes[each.place.place].layer_type}), {each.place.part}: {found}"
        planned.append(found)
    return planned


def _plan(model: PreTrainedModel, placed: PlacedEdit, probe: Probe, scale: Scale | None) -> Folding | str:
    place, edit = placed.place, placed.edit
    if place.part == "layer":
        return "the residual stream passes a layer unedited, so no weight can edit it"
    if edit.nonlinearity != "none" and not edit.shifts:
        return f"the nonlinearity {edit.nonlinearity} is not linear"
    if probe.write is None:
        return "no single linear layer writes its output"
    if edit.shifts:
        if getattr(model.get_submodule(probe.write), "bias", None) is None and not can_have_bias(model, place.part):
            return f"the layer that writes its output has no bias, and {model.config.model_type} has no setting for one"
        return Folding(place.place, probe.write, True, 1.0, 0.0)
    assert scale
    if not probe.ignores_scale and not scale.spread <= MOST_SPREAD:
        return (
            f"the scale that keeps its norm is {scale.mean:.3f} on average with a standard deviation of "
            f"{scale.spread:.1%} over tokens, above {MOST_SPREAD:.0%}"
        )
    return Folding(place.place, probe.write, probe.ignores_scale, scale.mean, scale.spread)


def can_have_bias(model: PreTrainedModel, part: str) -> bool:
    """Return whether a setting of the model's configuration gives the linear layers of a part a bias."""
    return getattr(text_config(model.config), _BIAS_SETTINGS[part], None) is False


@torch.no_grad()
def fold(model: PreTrainedModel, edits: Sequence[PlacedEdit], foldings: Sequence[Folding]) -> None:
    """Fold the edits into the model's weights, in place; computed in float64, rounded once."""
    parts = {each.place.part for each in edits if each.edit.shifts}
    for part in sorted(parts):
        if can_have_bias(model, part):
            add_biases(model, part)
    for each, folding in zip(edits, foldings, strict=True):
        write = model.get_submodule(folding.write)
        if each.edit.shifts:
            _add(write.bias, each.edit.shift)  # type: ignore[arg-type]
        else:
            _multiply(write, each.edit, folding.scale)


def _multiply(write: nn.Module, edit: Edit, scale: float) -> None:
    """W ← c M W, b ← c M b; W is [D, I], or [I, D] in a Conv1D."""
    weight: Tensor = write.weight  # type: ignore[assignment]
    bias: Tensor | None = write.bias  # type: ignore[assignment]
    weight_DI = weight.double().T if isinstance(write, Conv1D) else weight.double()
    folded_DI = scale * edit.projected(weight_DI.T).T
    weight.copy_(folded_DI.T if isinstance(write, Conv1D) else folded_DI)
    if bias is not None:
        bias.copy_(scale * edit.projected(bias.double()))


def _add(bias: Tensor, shift_D: Tensor) -> None:
    bias.copy_(bias.double() + shift_D.to(bias.device))


def add_biases(model: PreTrainedModel, part: str) -> None:
    """Give every linear layer of a part a bias of zeros, as the configuration then says. In place."""
    setattr(text_config(model.config), _BIAS_SETTINGS[part], True)
    with torch.device("meta"):
        expected: Any = empty_model(model.config, str(model.name_or_path))
    own = dict(model.named_parameters())
    for name in dict(expected.named_parameters()):
        if name not in own and name.endswith(".bias"):
            module = model.get_submodule(name.removesuffix(".bias"))
            weight: Tensor = module.weight  # type: ignore[assignment]
            module.bias = nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device))
