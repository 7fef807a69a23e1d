"""Checks that a model keeps the examples of a packed row apart. Not every architecture and attention does."""

import torch
from transformers import PreTrainedModel

from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.output_head import hidden_states, input_device
from storage.errors import UserError

# long enough for short convolutions and recurrences; two rows, since some models check position ids only in one row
_LENGTHS = ((5, 7), (8, 4))


@torch.no_grad()
def check_isolation(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raise UserError if an example's hidden states in a packed row differ from those it has alone.

    They are computed under autocast to `dtype`. The tolerance is 5 % of their norm in bfloat16 and float16, and 0.1 %
    in float32. Attending to another example's tokens changes them by a multiple of that.
    """
    training = model.training
    model.eval()
    try:
        with torch.autocast(input_device(model).type, dtype, enabled=dtype != torch.float32):
            difference = _largest_difference(model)
    finally:
        model.train(training)
    if not difference <= (1e-3 if min(dtype.itemsize, model.dtype.itemsize) >= 4 else 5e-2):
        raise UserError(
            f"{model.config.model_type}, attention {model.config._attn_implementation}: it attends across packed "
            "examples (does not reset at position id 0): choose another attention, or give each example its own row "
            "(train.row_tokens: 1)"
        )


def _largest_difference(model: PreTrainedModel) -> float:
    """Return the largest difference between packed and unpacked hidden states of an example, relative to their norm."""
    positions_BS = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in _LENGTHS])
    ids_BS = torch.arange(positions_BS.numel()).view(positions_BS.shape) % embedding_rows(model)
    ids_BS, positions_BS = (tensor.to(input_device(model)) for tensor in (ids_BS, positions_BS))
    packed_BSH = hidden_states(model, ids_BS, positions_BS)
    differences = []
    for row, (first, second) in enumerate(_LENGTHS):
        for place in (slice(0, first), slice(first, first + second)):
            alone_SH = hidden_states(model, ids_BS[row : row + 1, place], positions_BS[row : row + 1, place])[0]
            difference = (packed_BSH[row, place] - alone_SH).float().norm() / alone_SH.float().norm()
            differences.append(float(difference))
    return max(differences)
