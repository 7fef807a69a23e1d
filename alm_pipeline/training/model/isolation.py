"""Whether a model keeps the examples of a packed row apart: not every architecture and attention does, nor says so."""

import torch
from transformers import PreTrainedModel

from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.output_head import hidden_states, input_device
from storage.errors import UserError

# long enough for short convolutions and recurrences; two rows, since some look at position ids of a single one only
_LENGTHS = ((5, 7), (8, 4))


@torch.no_grad()
def check_isolation(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raises UserError where an example's hidden states are not those that it has alone.

    Computed under autocast to `dtype`. Within 5 % of their norm in bfloat16 and float16, 0.1 % in float32: another
    example's tokens in sight change them by a multiple of that.
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
            f"{model.config.model_type}, attention {model.config._attn_implementation}: examples in one row see each "
            "other, since it does not begin again where position ids do: choose another attention, or give each "
            "example a row alone (train.row_tokens: 1)"
        )


def _largest_difference(model: PreTrainedModel) -> float:
    """Of an example's hidden states in a packed row from those of it alone, as a share of their norm."""
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
