"""The tables of a drawn tokenizer: copies of the source's rows, and what the network predicts for the others.

Shapes: V tokens, T of them new (of several pieces), R of all that have a row in this step, W channels of a table.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alm_pipeline.hypernetwork.networks.hypernetwork import predict
from alm_pipeline.hypernetwork.networks.pieces import Pieces, SourceTables
from alm_pipeline.hypernetwork.sampling.sampler import SampledTokenizer

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DrawnRows:
    """The tokens of a drawn tokenizer that have a row in a step."""

    places: Ints
    """[V] each token's row; −1 if it has none"""
    copies: Ints
    """[R] as `SampledTokenizer.copies`"""
    new: Ints
    """[new rows] those rows that are predicted"""
    pieces: Pieces
    raised: npt.NDArray[np.float32] | None
    """[R] what is added to the logits; None: nothing"""

    @classmethod
    def of(cls, drawn: SampledTokenizer, used: Ints, negatives: int | None, random: np.random.Generator) -> "DrawnRows":
        """Return the rows of all tokens, or those that are not new, those `used`, and `negatives` of the others.

        The negatives represent all other tokens: e^logit is multiplied by the number of tokens per negative, so that
        the sum over the vocabulary is unbiased.
        """
        kept, raised = np.arange(drawn.size), None
        rest = np.setdiff1d(drawn.new, used)
        if negatives is not None and len(rest) > negatives:
            sampled = np.sort(random.choice(rest, negatives, replace=False))
            kept = np.setdiff1d(kept, np.setdiff1d(rest, sampled))
            raised = np.zeros(len(kept), np.float32)
            raised[np.searchsorted(kept, sampled)] = np.log(len(rest) / negatives)
        places = np.full(drawn.size, -1, np.int64)
        places[kept] = np.arange(len(kept))
        starts, pieces = drawn.pieces()
        of_kept = places[drawn.new] >= 0
        counts = np.diff(starts)
        return cls(
            places,
            drawn.copies[kept],
            places[drawn.new[of_kept]],
            Pieces(
                torch.from_numpy(np.concatenate([[0], np.cumsum(counts[of_kept])])),
                torch.from_numpy(pieces[np.repeat(of_kept, counts)]),
            ),
            raised,
        )

    def tables(self, network: nn.Module, source: SourceTables) -> list[Tensor]:
        """Return the tables [R, W] with the network's predictions. Rows of bytes without pieces are the mean row."""
        device = source.standard_SF.device
        pieces = Pieces(self.pieces.starts.to(device), self.pieces.ids.to(device))
        copies = torch.from_numpy(self.copies).to(device)
        new = torch.from_numpy(self.new).to(device)
        predicted = predict(network, source, pieces) if len(pieces) else [None] * len(source.tables)
        tables = []
        for table, rows in zip(source.tables, predicted, strict=True):
            copied = table[copies.clamp(min=0)]
            copied[copies == -2] = table.mean(0)
            tables.append(copied if rows is None else copied.index_copy(0, new, rows))
        return tables
