"""The published network: a transformer encoder over a token's pieces (ZeTT, arXiv 2405.07883; ALM, 2503.20083).

The pieces' standardized rows, of all tables side by side, go through a linear layer and post-norm layers (RoBERTa's:
GELU, a feed-forward part of twice the width, learned positions). The state of the first position gives the change of
each table's row, by a linear layer that is 0 before training. Two things differ from both published codes: padding is
masked, and the change is one of FVT's row. There it is one of the first piece's, which begins at 2.6 bits per byte
where FVT begins at 1.8.
"""

from typing import Any

import torch
from torch import Tensor, nn

from alm_pipeline.hypernetwork.networks.pieces import Pieces, SourceTables

_HEAD_CHANNELS = 64


class TransformerNetwork(nn.Module):
    """Predicts changes of FVT's rows."""

    def __init__(self, widths: tuple[int, ...], width: int, layers: int, most_pieces: int) -> None:
        super().__init__()
        self.most_pieces = most_pieces
        self.inward = nn.Linear(sum(widths), width)
        self.positions = nn.Parameter(torch.randn(most_pieces, width) * 0.02)
        heads = max(1, width // _HEAD_CHANNELS)
        while width % heads:
            heads -= 1
        settings: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, **settings)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.outward = nn.ModuleList(nn.Linear(width, table_width) for table_width in widths)
        for linear in self.outward:
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]  # declared as any module
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, source: SourceTables, pieces: Pieces) -> list[Tensor]:
        """Return for each table what is added to the means of the tokens' pieces: [T, W] each."""
        ids_TP, exists_TP = pieces.padded(self.most_pieces)
        states_TPH = self.inward(source.standard_SF[ids_TP]) + self.positions
        first_TH = self.encoder(states_TPH, src_key_padding_mask=~exists_TP)[:, 0]
        return [linear(first_TH) * scale for linear, scale in zip(self.outward, source.scales, strict=True)]
