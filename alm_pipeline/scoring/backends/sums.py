"""What is carried from piece to piece of the vocabulary: the order of the pieces, maxima and sums, and single logits.

Shapes: N positions, H hidden width, V vocabulary rows, P rows of a piece, K boundary tokens, R ranks, L listed tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alm_pipeline.models.output_head import Head, at_least_float32

# larger pieces have a multiple of this many rows: products of other widths take a tenth longer on a processor
_PIECE_MULTIPLE = 128
_LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class VocabularyOrder:
    """The vocabulary with the boundary tokens first, so that a piece of it contains only boundary tokens or none."""

    ids_V: Tensor
    """the tokens that exist, in this order"""
    places_V: Tensor
    """the place of each row of the head in this order; −1: padding"""
    boundary: int
    """the number of boundary tokens"""
    is_heads_own: bool
    """the head's rows are already in this order, so that a piece is not a copy"""

    @classmethod
    def of(cls, head: Head, boundary_ids_K: Tensor) -> "VocabularyOrder":
        places_V = torch.full(head.weight_VH.shape[:1], -1, device=head.device)
        is_boundary_V = places_V.index_fill(0, boundary_ids_K, 1)[: head.vocabulary]
        ids_V = is_boundary_V.argsort(descending=True, stable=True)
        places_V[ids_V] = torch.arange(len(ids_V), device=head.device)
        is_leading_V = is_boundary_V.cummin(0).values
        boundary, leading = torch.stack([(marks_V > 0).sum() for marks_V in (is_boundary_V, is_leading_V)]).tolist()
        return cls(ids_V, places_V, boundary, boundary == leading)

    def rows(self, piece: slice) -> Tensor | slice:
        """Return the rows of the head at a range of places."""
        return piece if self.is_heads_own else self.ids_V[piece]

    def pieces(self, positions: int, elements: int) -> Iterator[slice]:
        """Yield ranges of places whose logits of all positions are at most `elements`, or a single place."""
        length = max(1, elements // max(1, positions))
        length = length // _PIECE_MULTIPLE * _PIECE_MULTIPLE or length
        for first, end in ((0, self.boundary), (self.boundary, len(self.ids_V))):
            for start in range(first, end, length):
                yield slice(start, min(start + length, end))


@dataclass
class Sums:
    """Maximum and sums over the pieces of one group so far; a token's weight is exp(logit − highest)."""

    highest_N: Tensor
    total_N: Tensor
    """sum of the weights"""
    spread_N: Tensor | None
    """sum of weight · log(weight), for entropies"""
    unlisted_N: Tensor
    """sum of the weights of unlisted tokens, if some are listed"""

    @classmethod
    def none(cls, hidden_NH: Tensor, entropy: bool) -> "Sums":
        zeros_N = at_least_float32(hidden_NH.new_zeros(len(hidden_NH)))
        # not −∞, because ∞ − ∞ is NaN
        lowest_N = torch.full_like(zeros_N, torch.finfo(zeros_N.dtype).min)
        # copies, because a kernel adds in place
        return cls(lowest_N, zeros_N, zeros_N.clone() if entropy else None, zeros_N.clone())

    def add(self, logits_NP: Tensor, listed: "ListedPlaces | None" = None) -> None:
        """Add a piece. Overwrites the logits."""
        rise_N = self.highest_N - (highest_N := torch.maximum(self.highest_N, logits_NP.amax(-1)))
        weights_NP, shrink_N = piece_weights(logits_NP, highest_N), rise_N.exp()
        if self.spread_N is not None:
            moved_N = (self.spread_N + rise_N * self.total_N) * shrink_N
            self.spread_N = moved_N + torch.xlogy(weights_NP, weights_NP).sum(-1)
        self.highest_N, self.total_N = highest_N, self.total_N * shrink_N + weights_NP.sum(-1)
        if listed is not None:
            # a weight minus itself is 0: no other sum loses what is small
            weights_NP.scatter_add_(-1, listed.within_NL, -listed.values(weights_NP))
            self.unlisted_N = self.unlisted_N * shrink_N + weights_NP.sum(-1)

    def entropy(self) -> Tensor:
        """[N] the entropy within the group; 0 if the group is empty."""
        assert self.spread_N is not None
        return (self.total_N.log() - self.spread_N / self.total_N).where(self.total_N > 0, 0)


def piece_weights(logits_NP: Tensor, highest_N: Tensor) -> Tensor:
    """Return exp(logit − highest), in place."""
    difference_NP = logits_NP.sub_(highest_N[:, None])
    if difference_NP.device.type == "cpu":
        # on some processors PyTorch's `exp_` takes four times as long as `exp2_`
        return difference_NP.mul_(_LOG2_E).exp2_()
    return difference_NP.exp_()


class ListedPlaces(NamedTuple):
    """Where the listed tokens are in a piece."""

    inside_NL: Tensor
    within_NL: Tensor
    """any place of the piece for a token outside"""

    def values(self, numbers_NP: Tensor) -> Tensor:
        """[N, L] the piece's numbers of the listed tokens, 0 for those outside."""
        return numbers_NP.gather(-1, self.within_NL).mul_(self.inside_NL)


class SelectedPlaces(NamedTuple):
    """The places of single tokens in the order of the vocabulary; −1: padding, or none."""

    target_N: Tensor
    listed_NL: Tensor | None

    def listed_in(self, rows: slice) -> ListedPlaces | None:
        return None if self.listed_NL is None else ListedPlaces(*within(self.listed_NL, rows))


class SelectedLogits:
    """The logits of the targets and of the listed tokens, and the highest logits, from the pieces so far."""

    def __init__(self, hidden_NH: Tensor, places_N: Tensor, places_NL: Tensor | None, top: int) -> None:
        self.places, self.top = SelectedPlaces(places_N, places_NL), top
        empty_N = at_least_float32(hidden_NH.new_empty(len(hidden_NH)))
        self.target_N = torch.full_like(empty_N, -torch.inf)
        self.listed_NL = None if places_NL is None else empty_N.new_full(places_NL.shape, -torch.inf)
        self.listed_places: ListedPlaces | None = None
        self.top_NR, self.top_places_NR = empty_N.new_empty(len(empty_N), 0), places_N.new_empty(len(empty_N), 0)

    def update(self, logits_NP: Tensor, rows: slice) -> None:
        inside_N, within_N = within(self.places.target_N, rows)
        self.target_N = torch.where(inside_N, logits_NP.gather(-1, within_N[:, None]).squeeze(-1), self.target_N)
        self.listed_places = listed = self.places.listed_in(rows)
        if listed is not None and self.listed_NL is not None:
            self.listed_NL = torch.where(listed.inside_NL, logits_NP.gather(-1, listed.within_NL), self.listed_NL)
        if self.top:
            piece_NR, places_NR = logits_NP.topk(min(self.top, logits_NP.shape[-1]), -1)
            merged_NR = torch.cat([self.top_NR, piece_NR], -1)
            merged_places_NR = torch.cat([self.top_places_NR, places_NR + rows.start], -1)
            self.top_NR, order_NR = merged_NR.topk(min(self.top, merged_NR.shape[-1]), -1)
            self.top_places_NR = merged_places_NR.gather(-1, order_NR)


def within(places_N: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Return whether each place is in the piece, and its index there (any index for places outside)."""
    inside_N = (places_N >= rows.start) & (places_N < rows.stop)
    return inside_N, (places_N - rows.start).clamp(0, rows.stop - rows.start - 1)
