"""The output head without a dense log-softmax: a few numbers a position, in pieces of the vocabulary.

Shapes: N positions, H hidden width, V vocabulary rows, P rows of a piece, K boundary tokens, L positions whose boundary
tokens are all but impossible, R ranks. From a position's hidden state come the log-probability of the observed next
token, that of the next token being a boundary token and, when asked, the entropy and the likeliest tokens. Logits
exist for one piece of the vocabulary at a time, in float32; their maxima and sums are carried from piece to piece (the
online softmax of Milakov and Gimelshein 2018), and the backward pass computes the logits again. Pieces of the
vocabulary, not of positions: each row of the weight is then read once, which is what a large vocabulary costs. A layer
that is not linear can only be asked for all rows: it goes position by position.

Nothing waits for the device within a piece, so that a GPU is never idle between them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alm_pipeline.scoring.output_layer import (
    Head,
    LayerHead,
    at_least_float32,
    check_output_head,
    hidden_states,
    output_head,
)

__all__ = [
    "Head",
    "LayerHead",
    "NextToken",
    "check_output_head",
    "hidden_states",
    "next_token",
    "output_head",
    "token_and_boundary_logprobs",
]

# small enough for a processor's cache, and for an allocator to use the same memory again
_PIECE_ELEMENTS = 2**22
# larger: every piece of positions gives a gradient of the whole layer
_LAYER_PIECE_ELEMENTS = 2**25
_LEAST_LOG = -60.0


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
        sums = _Sums(hidden_NH, targets_N, head, boundary_ids_K, entropy, top)
        for rows in head.pieces(_rows_per_piece(hidden_NH)):
            sums.add(head.logits(hidden_NH, rows), rows)
        numbers, state = sums.numbers(hidden_NH, head)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        ctx.head, ctx.targets_N, ctx.state = head, targets_N, state
        ctx.mark_non_differentiable(*(tensor for tensor in numbers[3:] if tensor is not None))
        return tuple(numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V = ctx.saved_tensors
        grad_hidden_NH = torch.zeros_like(at_least_float32(hidden_NH)) if ctx.needs_input_grad[0] else None
        grad_weight_VH = torch.empty_like(weight_VH) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.empty_like(bias_V) if ctx.needs_input_grad[2] else None
        slopes = _Slopes.of(ctx.state, ctx.targets_N, *grads[:3])
        for rows in ctx.head.pieces(_rows_per_piece(hidden_NH)):
            grad_NP = slopes.gradient(ctx.head, ctx.head.logits(hidden_NH, rows), rows)
            if grad_bias_V is not None:
                grad_bias_V[rows] = grad_NP.sum(0).to(bias_V.dtype)
            grad_NP = grad_NP.to(weight_VH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH += grad_NP @ weight_VH[rows]
            if grad_weight_VH is not None:
                torch.mm(grad_NP.T, hidden_NH, out=grad_weight_VH[rows])
        for grad in (grad_weight_VH, grad_bias_V):
            if grad is not None:
                grad[ctx.head.vocabulary :] = 0
        grad_hidden = None if grad_hidden_NH is None else grad_hidden_NH.to(hidden_NH.dtype)
        return grad_hidden, grad_weight_VH, grad_bias_V, None, None, None, None, None


def _rows_per_piece(hidden_NH: Tensor) -> int:
    return max(1, _PIECE_ELEMENTS // max(1, len(hidden_NH)))


@dataclass(frozen=True)
class _State:
    """What the backward pass needs: p = exp(logit − highest) / exp(log_total)."""

    highest_N: Tensor
    log_total_N: Tensor
    boundary_N: Tensor
    entropy_N: Tensor | None
    is_boundary_V: Tensor
    lost: tuple[Tensor, Tensor] | None
    """[L] positions whose boundary tokens are too unlikely beside the highest, [L] log Σ exp(logit) of those alone"""


class _Sums:
    """Maxima and sums over the pieces seen so far; a token's weight is exp(logit − highest)."""

    def __init__(
        self, hidden_NH: Tensor, targets_N: Tensor, head: Head, boundary_ids_K: Tensor, entropy: bool, top: int
    ) -> None:
        dtype = torch.promote_types(head.dtype, torch.float32)
        zeros_N = torch.zeros(len(hidden_NH), dtype=dtype, device=hidden_NH.device)
        self.targets_N, self.top = targets_N, top
        self.is_boundary_V = zeros_N.new_zeros(head.weight_VH.shape[0]).index_fill_(0, boundary_ids_K, 1.0)
        self.target_N = torch.full_like(zeros_N, -torch.inf)
        # not −∞, whose differences are no numbers
        self.highest_N = torch.full_like(zeros_N, torch.finfo(dtype).min)
        self.total_N, self.boundary_N, self.spread_N = zeros_N, zeros_N, zeros_N if entropy else None
        self.top_NR, self.top_ids_NR = zeros_N.new_empty(len(zeros_N), 0), targets_N.new_empty(len(zeros_N), 0)

    def add(self, logits_NP: Tensor, rows: slice) -> None:
        """Overwrites the logits."""
        inside_N, places_N = _places(self.targets_N, rows)
        found_N = logits_NP.gather(-1, places_N[:, None]).squeeze(-1)
        self.target_N = torch.where(inside_N, found_N, self.target_N)
        if self.top:
            self._rank(logits_NP, rows.start)
        rise_N = self.highest_N - (highest_N := torch.maximum(self.highest_N, logits_NP.amax(-1)))
        weights_NP, shrink_N = logits_NP.sub_(highest_N[:, None]).exp_(), rise_N.exp()
        if self.spread_N is not None:
            moved_N = (self.spread_N + rise_N * self.total_N) * shrink_N
            self.spread_N = moved_N + torch.xlogy(weights_NP, weights_NP).sum(-1)
        self.highest_N, self.total_N = highest_N, self.total_N * shrink_N + weights_NP.sum(-1)
        # no matrix product: where those round to bfloat16, a sum of all but everything came out above everything
        self.boundary_N = self.boundary_N * shrink_N + weights_NP.mul_(self.is_boundary_V[rows]).sum(-1)

    def _rank(self, logits_NP: Tensor, first_row: int) -> None:
        piece_NR, ids_NR = logits_NP.topk(min(self.top, logits_NP.shape[-1]), -1)
        both_NR, both_ids_NR = (
            torch.cat([self.top_NR, piece_NR], -1),
            torch.cat([self.top_ids_NR, ids_NR + first_row], -1),
        )
        self.top_NR, order_NR = both_NR.topk(min(self.top, both_NR.shape[-1]), -1)
        self.top_ids_NR = both_ids_NR.gather(-1, order_NR)

    def numbers(self, hidden_NH: Tensor, head: Head) -> tuple[NextToken, _State]:
        """From the sums over all pieces."""
        log_total_N = self.total_N.log()
        boundary_N, lost = self.boundary_N.log() - log_total_N, None
        # where every boundary token's weight is too small for float32 beside the highest, sum them among themselves
        if (lost_N := boundary_N < _LEAST_LOG).any():
            lost_L = lost_N.nonzero().squeeze(-1)
            alone_L = _boundary_alone(hidden_NH[lost_L], head, self.is_boundary_V)
            boundary_N[lost_L] = alone_L - self.highest_N[lost_L] - log_total_N[lost_L]
            lost = lost_L, alone_L
        # their sums are rounded in other orders, and the objective has no logarithm of a chance above one
        boundary_N, target_N = boundary_N.clamp_(max=0), (self.target_N - self.highest_N - log_total_N).clamp_(max=0)
        entropy_N = None if self.spread_N is None else (log_total_N - self.spread_N / self.total_N).clamp_(min=0)
        ranked_NR = self.top_NR - (self.highest_N + log_total_N)[:, None] if self.top else None
        # copies: an output that its own backward pass holds on to is never freed
        kept_N, kept_entropy_N = boundary_N.clone(), None if entropy_N is None else entropy_N.clone()
        state = _State(self.highest_N, log_total_N, kept_N, kept_entropy_N, self.is_boundary_V > 0, lost)
        return NextToken(target_N, boundary_N, entropy_N, ranked_NR, self.top_ids_NR if self.top else None), state


def _boundary_alone(hidden_LH: Tensor, head: Head, is_boundary_V: Tensor) -> Tensor:
    """[L] log Σ exp(logit) over the boundary tokens."""
    parts = [
        head.logits(hidden_LH, rows).masked_fill_(is_boundary_V[rows] == 0, -torch.inf).logsumexp(-1)
        for rows in head.pieces(_rows_per_piece(hidden_LH))
    ]
    alone_L: Tensor = torch.stack(parts).logsumexp(0)
    return alone_L


def _places(targets_N: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in the piece, and where in it (anywhere, for those that don't)."""
    inside_N = (targets_N >= rows.start) & (targets_N < rows.stop)
    return inside_N, (targets_N - rows.start).clamp(0, rows.stop - rows.start - 1)


@dataclass(frozen=True)
class _Slopes:
    """The gradient of a logit z with weight w = exp(z − highest), up to scale and cap.

    With p = w / total: g_target (onehot − p) + g_boundary (p of the boundary tokens over their sum, − p)
    − g_entropy p (log p + entropy). So w is multiplied by one number for boundary tokens, by another for the others.
    """

    state: _State
    targets_N: Tensor
    grad_target_N: Tensor
    grad_boundary_N: Tensor
    boundary_N: Tensor
    other_N: Tensor
    spread_N: Tensor | None

    @classmethod
    def of(
        cls, state: _State, targets_N: Tensor, grad_target_N: Tensor, grad_boundary_N: Tensor, grad_entropy_N: Tensor
    ) -> "_Slopes":
        # what is impossible stays so
        grad_boundary_N = grad_boundary_N.masked_fill(state.boundary_N == -torch.inf, 0)
        other_N = -(grad_target_N + grad_boundary_N)
        boundary_N = grad_boundary_N * torch.expm1(-state.boundary_N) - grad_target_N
        if state.lost is not None:
            boundary_N[state.lost[0]] = other_N[state.lost[0]]
        spread_N, share_N = None, (-state.log_total_N).exp()
        if state.entropy_N is not None:
            spread_N = -grad_entropy_N * share_N
            level_N = grad_entropy_N * (state.entropy_N - state.log_total_N)
            other_N, boundary_N = other_N - level_N, boundary_N - level_N
        return cls(state, targets_N, grad_target_N, grad_boundary_N, boundary_N * share_N, other_N * share_N, spread_N)

    def gradient(self, head: Head, logits_NP: Tensor, rows: slice) -> Tensor:
        """[N, P] of the layer's own outputs. Overwrites the logits."""
        slope_NP = None if head.softcap is None else 1 - (logits_NP / head.softcap) ** 2
        lost_LP = self._lost(logits_NP, rows)
        grad_NP = logits_NP.sub_(self.state.highest_N[:, None]).exp_()
        spread_NP = None if self.spread_N is None else torch.xlogy(grad_NP, grad_NP).mul_(self.spread_N[:, None])
        grad_NP.mul_(torch.where(self.state.is_boundary_V[rows], self.boundary_N[:, None], self.other_N[:, None]))
        if spread_NP is not None:
            grad_NP.add_(spread_NP)
        if lost_LP is not None and self.state.lost is not None:
            grad_NP.index_add_(0, self.state.lost[0], lost_LP)
        inside_N, places_N = _places(self.targets_N, rows)
        grad_NP.scatter_add_(-1, places_N[:, None], (self.grad_target_N * inside_N)[:, None])
        grad_NP = grad_NP if slope_NP is None else grad_NP.mul_(slope_NP)
        return grad_NP if head.scale == 1.0 else grad_NP.mul_(head.scale)

    def _lost(self, logits_NP: Tensor, rows: slice) -> Tensor | None:
        """[L, P] what the boundary tokens get where their weights are too small."""
        if self.state.lost is None:
            return None
        lost_L, alone_L = self.state.lost
        shares_LP = (logits_NP[lost_L] - alone_L[:, None]).exp_()
        chosen_LP = self.state.is_boundary_V[rows] & (alone_L > -torch.inf)[:, None]
        return torch.where(chosen_LP, shares_LP, 0).mul_(self.grad_boundary_N[lost_L][:, None])


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
    inside_N, places_N = _places(targets_N, slice(0, head.vocabulary))
    found_N = logprobs_NV.gather(-1, places_N[:, None]).squeeze(-1)
    target_N = torch.where(inside_N, found_N, -torch.inf)
    boundary_N = logprobs_NV.index_select(-1, boundary_ids_K).logsumexp(-1).clamp(max=0)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1) if entropy else None
    top_NR, top_ids_NR = logprobs_NV.detach().topk(top, -1) if top else (None, None)
    return NextToken(target_N, boundary_N, entropy_N, top_NR, top_ids_NR)
