"""The default network: a gain and an offset per channel, and a linear map of low rank.

With the standardized rows of a token's pieces, and m their mean, a token's row is FVT's plus

    std ∘ (gain ∘ m + offset + B A [first; last; mean])

Gain, offset and B are 0 before training, so the first step is FVT. Most of what it learns is how likely new tokens are
as a whole (means of frequent pieces are likely everywhere); the rank corrects single tokens.
"""

import torch
from torch import Tensor, nn

from alm_pipeline.hypernetwork.networks.pieces import Pieces, SourceTables


class LowRankNetwork(nn.Module):
    """Predicts changes of FVT's rows. Untied models share A between their tables."""

    def __init__(self, widths: tuple[int, ...], rank: int) -> None:
        super().__init__()
        features = 3 * sum(widths)
        self.a = nn.Parameter(torch.randn(rank, features) * features**-0.5)
        self.b = nn.ParameterList(torch.zeros(width, rank) for width in widths)
        self.gains = nn.ParameterList(torch.zeros(width) for width in widths)
        self.offsets = nn.ParameterList(torch.zeros(width) for width in widths)

    def forward(self, source: SourceTables, pieces: Pieces) -> list[Tensor]:
        """Return for each table what is added to the means of the tokens' pieces: [T, W] each."""
        table_SF = source.standard_SF
        mean_TF = pieces.means(table_SF)
        rows = (table_SF[pieces.first()], table_SF[pieces.last()], mean_TF)
        hidden_TR = sum(row @ a.T for row, a in zip(rows, self.a.chunk(3, 1), strict=True))
        means = mean_TF.split(source.widths, -1)
        parts = zip(means, self.gains, self.offsets, self.b, source.scales, strict=True)
        return [(mean * gain + offset + hidden_TR @ b.T) * scale for mean, gain, offset, b, scale in parts]
