"""The output head without a dense log-softmax: a few numbers a position, in pieces of the vocabulary.

Shapes: N positions, H hidden width, V vocabulary rows, P rows of a piece, K boundary tokens, R ranks. From a position's
hidden state come the log-probability of the observed next token, that of the next token being a boundary token and,
when asked, the entropy and the likeliest tokens. Logits exist for one piece of the vocabulary at a time, in float32;
their maxima and sums are carried from piece to piece (the online softmax of Milakov and Gimelshein 2018), and the
backward pass computes the logits again. Pieces of the vocabulary, not of positions: each row of the weight is then read
once, which is what a large vocabulary costs. A piece holds boundary tokens only, or none: the sums of both groups are
kept apart, and so none is lost beside the other. A layer that is not linear can only be asked for all rows: it goes
position by position.

Nothing waits for the device within a piece, so that a GPU is never idle between them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alm_pipeline.models.output_head import Head, LayerHead, at_least_float32

# small enough for a processor's cache, and for an allocator to use the same memory again
_PIECE_ELEMENTS = 2**22
# of rows, where a piece has more: products of other widths take a tenth longer on a processor
_PIECE_MULTIPLE = 128
# larger: every piece of positions gives a gradient of the whole layer
_LAYER_PIECE_ELEMENTS = 2**25

_LOG2_E = 1 / math.log(2)


class NextToken(NamedTuple):
    """What is known of the next token at each position, in float32 or better; logarithms and entropies in nats."""

    target_logprobs_N: Tensor
    """log p(target); −∞ for a row of padding"""
    boundary_logprobs_N: Tensor
    """log Σ p over the boundary tokens; −∞ where there is none"""
    entropy_N: Tensor | None
    """−Σ p log p"""
    top_logprobs_NR: Tensor | None
    """the largest first; without gradient"""
    top_ids_NR: Tensor | None
    """among equals, any"""


def token_and_boundary_logprobs(
    hidden_NH: Tensor, targets_N: Tensor, head: Head | LayerHead, boundary_ids_K: Tensor
) -> tuple[Tensor, Tensor]:
    """([N], [N]) float32: log p(target | position), and log Σ_{k ∈ boundary} p(k | position), as `next_token`."""
    numbers = next_token(hidden_NH, targets_N, head, boundary_ids_K)
    return numbers.target_logprobs_N, numbers.boundary_logprobs_N


def next_token(
    hidden_NH: Tensor,
    targets_N: Tensor,
    head: Head | LayerHead,
    boundary_ids_K: Tensor,
    *,
    entropy: bool = False,
    top: int = 0,
) -> NextToken:
    """The numbers of every position's next token; the entropy and the `top` likeliest tokens when asked.

    Differentiable with respect to the hidden states and the head's parameters, once. No log-probability is above 0.
    With a bfloat16 head, logits and the gradients of logits are rounded to bfloat16 as in a dense computation (logits
    of magnitude 8 are off by up to 0.03); everything summed over the vocabulary is summed in float32.
    """
    hidden_NH = hidden_NH.to(head.dtype)
    if isinstance(head, LayerHead):
        return _layer_numbers(hidden_NH, targets_N, head, boundary_ids_K, entropy, min(top, head.vocabulary))
    numbers: tuple[Tensor, ...] = _LinearNumbers.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight_VH, head.bias_V, targets_N, head, boundary_ids_K, entropy, min(top, head.vocabulary)
    )
    return NextToken(*numbers)


class NextTokens:
    """`next_token` for many calls with one head that does not change: its rows are gathered once, not in every call.

    Of a linear head it holds a copy, with the boundary tokens in front.
    """

    def __init__(self, head: Head | LayerHead, boundary_ids_K: Tensor) -> None:
        self.head, self.boundary_ids_K = head, boundary_ids_K
        self._ids_V: Tensor | None = None
        if isinstance(head, Head):
            self._sort(head)

    def _sort(self, head: Head) -> None:
        order = _Order.of(head, self.boundary_ids_K)
        padding = torch.arange(head.vocabulary, len(head.weight_VH), device=head.device)
        self._ids_V = torch.cat([order.ids_V, padding])
        self._places_V = self._ids_V.argsort()
        self.boundary_ids_K = torch.arange(order.boundary, device=head.device)
        bias_V = None if head.bias_V is None else head.bias_V[self._ids_V]
        self.head = replace(head, weight_VH=head.weight_VH[self._ids_V], bias_V=bias_V)

    def __call__(self, hidden_NH: Tensor, targets_N: Tensor, *, entropy: bool = False, top: int = 0) -> NextToken:
        if self._ids_V is None:
            return next_token(hidden_NH, targets_N, self.head, self.boundary_ids_K, entropy=entropy, top=top)
        places_N = self._places_V[targets_N]
        found = next_token(hidden_NH, places_N, self.head, self.boundary_ids_K, entropy=entropy, top=top)
        if found.top_ids_NR is None:
            return found
        return found._replace(top_ids_NR=self._ids_V[found.top_ids_NR])


class _LinearNumbers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
        boundary_ids_K: Tensor,
        entropy: bool,
        top: int,
    ) -> tuple[Tensor | None, ...]:
        order = _Order.of(head, boundary_ids_K)
        boundary, others = (_Sums.none(hidden_NH, entropy) for _ in range(2))
        chosen = _Chosen(hidden_NH, order.places_V[targets_N], top)
        for rows in order.pieces(len(hidden_NH)):
            logits_NP = head.logits(hidden_NH, order.rows(rows))
            chosen.look(logits_NP, rows)
            (boundary if rows.start < order.boundary else others).add(logits_NP)
        numbers = _numbers(boundary, others, chosen, order)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        # copies: an output that its own backward pass holds on to is never freed
        kept = [None if number is None else number.clone() for number in numbers[1:3]]
        ctx.head, ctx.order, ctx.places_N, ctx.state = head, order, chosen.places_N, (boundary, others, *kept)
        ctx.mark_non_differentiable(*(tensor for tensor in numbers[3:] if tensor is not None))
        return tuple(numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V = ctx.saved_tensors
        grad_hidden_NH = torch.zeros_like(at_least_float32(hidden_NH)) if ctx.needs_input_grad[0] else None
        # of padding zero
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] else None
        slopes = _slopes(*ctx.state, *grads[:3])
        for rows in ctx.order.pieces(len(hidden_NH)):
            ids_P = ctx.order.rows(rows)
            logits_NP = ctx.head.logits(hidden_NH, ids_P)
            grad_NP = slopes[rows.start >= ctx.order.boundary].gradient(
                logits_NP, ctx.head, ctx.places_N, rows, grads[0]
            )
            if grad_bias_V is not None:
                grad_bias_V[ids_P] = grad_NP.sum(0).to(bias_V.dtype)
            grad_NP = grad_NP.to(weight_VH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH += grad_NP @ weight_VH[ids_P]
            if grad_weight_VH is not None:
                grad_weight_VH[ids_P] = grad_NP.T @ hidden_NH
        grad_hidden = None if grad_hidden_NH is None else grad_hidden_NH.to(hidden_NH.dtype)
        return grad_hidden, grad_weight_VH, grad_bias_V, None, None, None, None, None


@dataclass(frozen=True)
class _Order:
    """The vocabulary with the boundary tokens in front, so that a piece of it holds only such, or none."""

    ids_V: Tensor
    """the tokens that exist, in that order"""
    places_V: Tensor
    """where each row of the head stands in it; −1: padding"""
    boundary: int
    """so many are boundary tokens"""
    is_heads_own: bool
    """the head has its rows in that order, so that a piece of it is no copy"""

    @classmethod
    def of(cls, head: Head, boundary_ids_K: Tensor) -> "_Order":
        places_V = torch.full(head.weight_VH.shape[:1], -1, device=head.device)
        is_boundary_V = places_V.index_fill(0, boundary_ids_K, 1)[: head.vocabulary]
        ids_V = is_boundary_V.argsort(descending=True, stable=True)
        places_V[ids_V] = torch.arange(len(ids_V), device=head.device)
        in_front = is_boundary_V.cummin(0).values
        boundary, leading = torch.stack([(marks_V > 0).sum() for marks_V in (is_boundary_V, in_front)]).tolist()
        return cls(ids_V, places_V, boundary, boundary == leading)

    def rows(self, piece: slice) -> Tensor | slice:
        """Which rows of the head a range of places is."""
        return piece if self.is_heads_own else self.ids_V[piece]

    def pieces(self, positions: int) -> Iterator[slice]:
        """Ranges of places, so small that the logits of a piece are few."""
        length = max(1, _PIECE_ELEMENTS // max(1, positions))
        length = length // _PIECE_MULTIPLE * _PIECE_MULTIPLE or length
        for first, end in ((0, self.boundary), (self.boundary, len(self.ids_V))):
            for start in range(first, end, length):
                yield slice(start, min(start + length, end))


@dataclass
class _Sums:
    """Maximum and sums over the pieces of one group that were seen so far; a token's weight is exp(logit − highest)."""

    highest_N: Tensor
    total_N: Tensor
    """of the weights"""
    spread_N: Tensor | None
    """of weight · log(weight), for entropies"""

    @classmethod
    def none(cls, hidden_NH: Tensor, entropy: bool) -> "_Sums":
        zeros_N = at_least_float32(hidden_NH.new_zeros(len(hidden_NH)))
        # not −∞, whose differences are no numbers
        lowest_N = torch.full_like(zeros_N, torch.finfo(zeros_N.dtype).min)
        return cls(lowest_N, zeros_N, zeros_N if entropy else None)

    def add(self, logits_NP: Tensor) -> None:
        """Overwrites the logits."""
        rise_N = self.highest_N - (highest_N := torch.maximum(self.highest_N, logits_NP.amax(-1)))
        weights_NP, shrink_N = _weights(logits_NP, highest_N), rise_N.exp()
        if self.spread_N is not None:
            moved_N = (self.spread_N + rise_N * self.total_N) * shrink_N
            self.spread_N = moved_N + torch.xlogy(weights_NP, weights_NP).sum(-1)
        self.highest_N, self.total_N = highest_N, self.total_N * shrink_N + weights_NP.sum(-1)

    def entropy(self) -> Tensor:
        """[N] of the group alone; 0 where nothing is in it."""
        assert self.spread_N is not None
        return (self.total_N.log() - self.spread_N / self.total_N).where(self.total_N > 0, 0)


def _weights(logits_NP: Tensor, highest_N: Tensor) -> Tensor:
    """exp(logit − highest), in place."""
    difference_NP = logits_NP.sub_(highest_N[:, None])
    if difference_NP.device.type == "cpu":
        # of PyTorch's `exp_`, some processors take four times as long as of powers of two
        return difference_NP.mul_(_LOG2_E).exp2_()
    return difference_NP.exp_()


class _Chosen:
    """The logits of the targets, and the highest ones, from the pieces that were seen so far."""

    def __init__(self, hidden_NH: Tensor, places_N: Tensor, top: int) -> None:
        self.places_N, self.top = places_N, top
        empty_N = at_least_float32(hidden_NH.new_empty(len(hidden_NH)))
        self.target_N = torch.full_like(empty_N, -torch.inf)
        self.top_NR, self.top_places_NR = empty_N.new_empty(len(empty_N), 0), places_N.new_empty(len(empty_N), 0)

    def look(self, logits_NP: Tensor, rows: slice) -> None:
        inside_N, within_N = _within(self.places_N, rows)
        self.target_N = torch.where(inside_N, logits_NP.gather(-1, within_N[:, None]).squeeze(-1), self.target_N)
        if self.top:
            piece_NR, places_NR = logits_NP.topk(min(self.top, logits_NP.shape[-1]), -1)
            both_NR = torch.cat([self.top_NR, piece_NR], -1)
            both_places_NR = torch.cat([self.top_places_NR, places_NR + rows.start], -1)
            self.top_NR, order_NR = both_NR.topk(min(self.top, both_NR.shape[-1]), -1)
            self.top_places_NR = both_places_NR.gather(-1, order_NR)


def _within(places_N: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Which places lie in the piece, and where in it (anywhere, for those that don't)."""
    inside_N = (places_N >= rows.start) & (places_N < rows.stop)
    return inside_N, (places_N - rows.start).clamp(0, rows.stop - rows.start - 1)


def _numbers(boundary: _Sums, others: _Sums, chosen: _Chosen, order: _Order) -> NextToken:
    # differences of maxima come first: two sums as logarithms, both large, would differ by their rounding
    lead_N = (others.highest_N - boundary.highest_N) + (others.total_N.log() - boundary.total_N.log())
    boundary_N = -torch.nn.functional.softplus(lead_N)
    highest_N = torch.maximum(boundary.highest_N, others.highest_N)
    total_N = sum(sums.total_N * (sums.highest_N - highest_N).exp() for sums in (boundary, others))
    log_total_N = torch.as_tensor(total_N).log()
    # the target's logit is among the sums, which are rounded, and the objective has no logarithm above zero
    target_N = (chosen.target_N - highest_N - log_total_N).clamp_(max=0)
    entropy_N = None if boundary.spread_N is None else _entropy(boundary, others, boundary_N)
    if not chosen.top:
        return NextToken(target_N, boundary_N, entropy_N, None, None)
    ranked_NR = chosen.top_NR - highest_N[:, None] - log_total_N[:, None]
    return NextToken(target_N, boundary_N, entropy_N, ranked_NR, order.ids_V[chosen.top_places_NR])


def _entropy(boundary: _Sums, others: _Sums, boundary_N: Tensor) -> Tensor:
    """[N] of which group it is, and within the groups."""
    chances = boundary_N.exp(), -torch.expm1(boundary_N)
    parts = [
        chance_N * sums.entropy() - torch.xlogy(chance_N, chance_N)
        for sums, chance_N in zip((boundary, others), chances, strict=True)
    ]
    return parts[0] + parts[1]


@dataclass(frozen=True)
class _Slope:
    """The gradient of a logit of one group, up to scale and cap: its weight times a number, or two for the entropy."""

    highest_N: Tensor
    level_N: Tensor
    spread_N: Tensor | None

    def gradient(self, logits_NP: Tensor, head: Head, places_N: Tensor, rows: slice, grad_target_N: Tensor) -> Tensor:
        """[N, P] of the layer's own outputs. Overwrites the logits."""
        cap_NP = None if head.softcap is None else 1 - (logits_NP / head.softcap) ** 2
        grad_NP = _weights(logits_NP, self.highest_N)
        spread_NP = None if self.spread_N is None else torch.xlogy(grad_NP, grad_NP).mul_(self.spread_N[:, None])
        grad_NP.mul_(self.level_N[:, None])
        if spread_NP is not None:
            grad_NP.add_(spread_NP)
        inside_N, within_N = _within(places_N, rows)
        grad_NP.scatter_add_(-1, within_N[:, None], (grad_target_N * inside_N)[:, None])
        grad_NP = grad_NP if cap_NP is None else grad_NP.mul_(cap_NP)
        return grad_NP if head.scale == 1.0 else grad_NP.mul_(head.scale)


def _slopes(
    boundary: _Sums,
    others: _Sums,
    boundary_N: Tensor,
    entropy_N: Tensor | None,
    grad_target_N: Tensor,
    grad_boundary_N: Tensor,
    grad_entropy_N: Tensor,
) -> tuple[_Slope, _Slope]:
    """Of boundary tokens, and of the others.

    With P the group's chance and p = P · weight / total: g_target (onehot − p), g_boundary (p / P − p) for boundary
    tokens and −g_boundary p for the others, −g_entropy p (log p + entropy).
    """
    # what is impossible stays so
    grad_boundary_N = grad_boundary_N.masked_fill(boundary_N == -torch.inf, 0)
    chance_N, rest_N = boundary_N.exp(), -torch.expm1(boundary_N)
    level_N = grad_boundary_N * rest_N - grad_target_N * chance_N
    other_N = -(grad_target_N + grad_boundary_N) * rest_N
    parts = ((boundary, chance_N, level_N), (others, rest_N, other_N))
    first, second = (_slope(*part, entropy_N, grad_entropy_N) for part in parts)
    return first, second


def _slope(sums: _Sums, chance_N: Tensor, level_N: Tensor, entropy_N: Tensor | None, grad_entropy_N: Tensor) -> _Slope:
    spread_N = None
    if entropy_N is not None:
        levels_N = torch.xlogy(chance_N, chance_N) + chance_N * (entropy_N - sums.total_N.log())
        level_N = level_N - grad_entropy_N * levels_N
        spread_N = -grad_entropy_N * chance_N / sums.total_N
    return _Slope(sums.highest_N, level_N / sums.total_N, spread_N)


def _layer_numbers(
    hidden_NH: Tensor, targets_N: Tensor, head: LayerHead, boundary_ids_K: Tensor, entropy: bool, top: int
) -> NextToken:
    """Dense, for a few positions at a time; the backward pass computes them again."""
    length = max(1, _LAYER_PIECE_ELEMENTS // head.vocabulary)
    boundary_ids_K = boundary_ids_K[boundary_ids_K < head.vocabulary]
    pieces = [
        checkpoint(_dense_numbers, hidden_PH, targets_P, head, boundary_ids_K, entropy, top, use_reentrant=False)
        for hidden_PH, targets_P in zip(hidden_NH.split(length), targets_N.split(length), strict=True)
    ]
    columns: list[Any] = [None if parts[0] is None else torch.cat(parts) for parts in zip(*pieces, strict=True)]
    return NextToken(*columns)


def _dense_numbers(
    hidden_NH: Tensor, targets_N: Tensor, head: LayerHead, boundary_ids_K: Tensor, entropy: bool, top: int
) -> NextToken:
    logprobs_NV = head.logits(hidden_NH).log_softmax(-1)
    inside_N, places_N = _within(targets_N, slice(0, head.vocabulary))
    found_N = logprobs_NV.gather(-1, places_N[:, None]).squeeze(-1)
    target_N = torch.where(inside_N, found_N, -torch.inf)
    boundary_N = logprobs_NV.index_select(-1, boundary_ids_K).logsumexp(-1).clamp(max=0)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1) if entropy else None
    top_NR, top_ids_NR = logprobs_NV.detach().topk(top, -1) if top else (None, None)
    return NextToken(target_N, boundary_N, entropy_N, top_NR, top_ids_NR)
