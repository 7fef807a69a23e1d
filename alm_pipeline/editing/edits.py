"""Edits as forward hooks of a plain model, and what their constant scale would be.

Shapes: B rows of a batch, T tokens of a row with padding, D width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alm_pipeline.editing.directions.capture import length_batches, padded
from alm_pipeline.editing.directions.modeling_edited import Edit, edit_output
from alm_pipeline.editing.directions.places import first_tensor
from alm_pipeline.editing.directions.stage import PlaceSpectrum, Projections
from alm_pipeline.models.output_head import hidden_states


@dataclass(frozen=True)
class PlacedEdit:
    """The edit of a place of a model."""

    place: PlaceSpectrum
    edit: Edit


@dataclass(frozen=True)
class Scale:
    """The mean of ‖h‖ / ‖M h‖ over tokens, by which a folded edit is scaled instead of each token's own."""

    mean: float
    deviation: float
    """the standard deviation over tokens"""

    @property
    def spread(self) -> float:
        """The deviation as a share of the mean."""
        return self.deviation / self.mean


def make_edits(projections: Projections, nonlinearity: str) -> list[PlacedEdit]:
    """Return the edits of the edited places, in order."""
    return [
        PlacedEdit(place, _edit(projections.of(place.place), nonlinearity))
        for place in projections.spectrum
        if place.edited
    ]


def _edit(factors: Mapping[str, Any], nonlinearity: str) -> Edit:
    width = len(next(iter(factors.values())))
    if "shift" in factors:
        edit = Edit(width, shift=True)
    else:
        edit = Edit(width, factors["keep"].shape[1], factors["drop"].shape[1], nonlinearity)
    for name, factor in factors.items():
        setattr(edit, name, torch.from_numpy(factor))
    return edit


@contextmanager
def edited(model: PreTrainedModel, edits: Sequence[PlacedEdit]) -> Iterator[None]:
    """Edit every forward pass of the model inside."""
    hooks = [
        model.get_submodule(each.place.module).register_forward_hook(partial(edit_output, each.edit)) for each in edits
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def measure_scales(
    model: PreTrainedModel, edits: Sequence[PlacedEdit], rows: Sequence[Sequence[int]], batch_tokens: int
) -> dict[str, Scale]:
    """Return the scales of linear edits by place, over all tokens of these rows of ids, in the edited model."""
    found: dict[str, list[Tensor]] = {each.place.place: [] for each in edits}
    lengths: list[int] = []

    def measure(each: PlacedEdit, module: nn.Module, inputs: Any, output: Any) -> Any:
        states = first_tensor(output)
        states_BTD = states.reshape(len(lengths), -1, states.shape[-1]).float()
        ratios_BT = states_BTD.norm(dim=-1) / each.edit.projected(states_BTD).norm(dim=-1)
        real_BT = torch.arange(states_BTD.shape[1])[None] < torch.tensor(lengths)[:, None]
        found[each.place.place].append(ratios_BT.cpu()[real_BT])
        return edit_output(each.edit, module, inputs, output)

    hooks = [model.get_submodule(each.place.module).register_forward_hook(partial(measure, each)) for each in edits]
    try:
        for batch in length_batches(rows, batch_tokens):
            lengths[:] = [len(rows[k]) for k in batch]
            hidden_states(model, padded(model, [rows[k] for k in batch]))
    finally:
        for hook in hooks:
            hook.remove()
    ratios = {place: torch.cat(parts).double() for place, parts in found.items()}
    return {place: Scale(float(each.mean()), float(each.std(correction=0))) for place, each in ratios.items()}
