"""Activations at the last token of texts: one forward pass per text, in batches.

Rows are padded on the right, where causal attention never looks, so that no mask is needed and a row's activations do
not depend on its batch.

Shapes: N texts, P places, D width, B rows of a batch, T tokens of a row with padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alm_pipeline.editing.directions.places import Place, first_tensor
from alm_pipeline.models.output_head import hidden_states, input_device
from alm_pipeline.runtime.progress import Advance
from alm_pipeline.scoring.batching import BatchBudget
from alm_pipeline.scoring.finite import why_not_finite
from storage.errors import UserError

Floats = npt.NDArray[np.float32]


@contextmanager
def captured(model: PreTrainedModel, places: Sequence[Place]) -> Iterator[dict[str, Tensor]]:
    """Yield the outputs of places by name, which every forward pass inside fills in."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = first_tensor(output)

    hooks = [model.get_submodule(place.module).register_forward_hook(partial(keep, place.name)) for place in places]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def last_token_activations(
    model: PreTrainedModel,
    places: Sequence[Place],
    rows: Sequence[Sequence[int]],
    batch_tokens: int,
    advance: Advance | None = None,
) -> Floats:
    """[N, P, D] the activations at the last token of each row of ids.

    Raises UserError if an activation is NaN or infinite.
    """
    found: Floats | None = None
    with captured(model, places) as outputs:
        for batch in length_batches(rows, batch_tokens):
            hidden_states(model, padded(model, [rows[k] for k in batch]))
            picked_BPD = _last([outputs[place.name] for place in places], [len(rows[k]) for k in batch])
            if found is None:
                found = np.empty((len(rows), *picked_BPD.shape[1:]), np.float32)
            found[batch] = picked_BPD
            if advance:
                advance(len(batch))
    if found is None:
        return np.empty((0, len(places), 0), np.float32)
    if not np.isfinite(found).all():
        dtype = str(model.dtype).removeprefix("torch.")
        raise UserError(f"{model.name_or_path}: an activation is NaN or infinite: {why_not_finite(dtype)}")
    return found


def length_batches(rows: Sequence[Sequence[int]], batch_tokens: int, new_tokens: int = 0) -> Iterator[list[int]]:
    """Yield the indices of each batch, longest rows first, so that a lack of memory shows at once.

    `new_tokens` is the room that each row needs for what is generated after it.
    """
    order, budget = sorted(range(len(rows)), key=lambda k: (-len(rows[k]), k)), BatchBudget(batch_tokens)
    while order:
        count = budget.rows(max(1, len(rows[order[0]]) + new_tokens))
        yield order[:count]
        order = order[count:]


def padded(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """[B, T] ids on the model's device, padded on the right."""
    ids_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for k, row in enumerate(rows):
        ids_BT[k, : len(row)] = torch.tensor(row)
    return ids_BT.to(input_device(model))


def _last(outputs: Sequence[Tensor], lengths: Sequence[int]) -> Floats:
    """[B, P, D] of outputs [B, T, D] at places, or [B · T, D] as some MLPs have them, those of the last real token."""
    last_B = torch.tensor(lengths) - 1
    rows = [states.reshape(len(lengths), -1, states.shape[-1]) for states in outputs]
    picked = [states_BTD[torch.arange(len(lengths)), last_B].float().cpu() for states_BTD in rows]
    return torch.stack(picked, 1).numpy()
