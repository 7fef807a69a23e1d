"""Checks that a model computes for an example in a batch what it computes for the text alone.

Not every architecture and attention keeps the examples of a packed row apart, or counts positions from 0.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.output_head import hidden_states, input_device
from storage.errors import UserError

# long enough for short convolutions and recurrences; two rows, since some models check position ids only in one row
_LENGTHS = ((5, 7), (8, 4))


@torch.no_grad()
def check_positions(model: PreTrainedModel) -> None:
    """Raise UserError if positions that count from 0, as batches have them, are not those that the model counts itself.

    Scoring and generation leave counting to the model, so the student would be trained in other places of its table.
    """
    training, device = model.training, input_device(model)
    model.eval()
    try:
        ids_BS = torch.arange(1, 1 + sum(_LENGTHS[0]), device=device)[None] % embedding_rows(model)
        counted_BSH = hidden_states(model, ids_BS, torch.arange(ids_BS.shape[1], device=device)[None])
        difference = _distance(counted_BSH, hidden_states(model, ids_BS))
    finally:
        model.train(training)
    if not difference <= (1e-3 if model.dtype.itemsize >= torch.float32.itemsize else 2e-2):
        raise UserError(
            f"{model.config.model_type}: it does not count a text's positions from 0, as batches do, so it would be "
            "trained with other positions than it is used with: choose another model"
        )


@torch.no_grad()
def check_isolation(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raise UserError if an example's hidden states depend on the other example in its row, or on its place there.

    They are computed under autocast to `dtype`. Masked tokens have no part in a sum, so other tokens in the other
    example must not change them by more than 0.1 % of their norm, or 1 % in bfloat16 and float16. States that an
    example has alone are computed in other shapes: in float32 they differ by up to 0.1 %. In bfloat16 a trained model's
    differed by 9 %, so there the limit is half of the norm.
    """
    training, is_whole = model.training, min(dtype.itemsize, model.dtype.itemsize) >= torch.float32.itemsize
    model.eval()
    try:
        with torch.autocast(input_device(model).type, dtype, enabled=dtype != torch.float32):
            packed_BSH, influence = _influence(model)
            difference = _largest_difference(model, packed_BSH)
    finally:
        model.train(training)
    if not (influence <= (1e-3 if is_whole else 1e-2) and difference <= (1e-3 if is_whole else 0.5)):
        raise UserError(
            f"{model.config.model_type}, attention {model.config._attn_implementation}: it attends across packed "
            "examples (does not reset at position id 0): choose another attention, or give each example its own row "
            "(train.row_tokens: 1)"
        )


def _influence(model: PreTrainedModel) -> tuple[Tensor, float]:
    """Return ([B, S, H] packed hidden states, their largest change by the tokens of the other example in the row)."""
    ids_BS, positions_BS = _packed(model)
    packed_BSH = hidden_states(model, ids_BS, positions_BS)
    changes = []
    for changed in (0, 1):
        places = [(row, *_places(row)) for row in range(len(_LENGTHS))]
        others_BS = ids_BS.clone()
        for row, *both in places:
            others_BS[row, both[changed]] = (others_BS[row, both[changed]] + ids_BS.numel()) % embedding_rows(model)
        found_BSH = hidden_states(model, others_BS, positions_BS)
        changes += [
            _distance(found_BSH[row, both[1 - changed]], packed_BSH[row, both[1 - changed]]) for row, *both in places
        ]
    return packed_BSH, max(changes)


def _largest_difference(model: PreTrainedModel, packed_BSH: Tensor) -> float:
    """Return the largest difference between packed and unpacked hidden states of an example."""
    ids_BS, positions_BS = _packed(model)
    return max(
        _distance(
            packed_BSH[row, place],
            hidden_states(model, ids_BS[row : row + 1, place], positions_BS[row : row + 1, place])[0],
        )
        for row in range(len(_LENGTHS))
        for place in _places(row)
    )


def _packed(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return ([B, S] ids, [B, S] position ids) of two rows of two examples."""
    positions_BS = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in _LENGTHS])
    ids_BS = torch.arange(positions_BS.numel()).view(positions_BS.shape) % embedding_rows(model)
    return ids_BS.to(input_device(model)), positions_BS.to(input_device(model))


def _places(row: int) -> tuple[slice, slice]:
    """Return where the two examples of a row are."""
    first, second = _LENGTHS[row]
    return slice(0, first), slice(first, first + second)


def _distance(found_SH: Tensor, expected_SH: Tensor) -> float:
    """Return the distance of hidden states relative to the norm of the expected ones."""
    return float((found_SH - expected_SH).float().norm() / expected_SH.float().norm())
