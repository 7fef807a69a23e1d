"""The output head without a dense log-softmax: two numbers a position, in pieces of the vocabulary.

Shapes: N positions, H hidden width, V vocabulary rows, P rows of a piece, K boundary tokens. From a position's hidden
state come the log-probability of the observed next token and that of the next token being a boundary token. Logits
exist for one piece of the vocabulary at a time, in float32; their maxima and sums are carried from piece to piece (the
online softmax of Milakov and Gimelshein 2018), and the backward pass computes the logits again. Pieces of the
vocabulary, not of positions: each row of the weight is then read once, which is what a large vocabulary costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from storage.errors import UserError

# small enough for a processor's cache, and for an allocator to use the same memory again
_PIECE_ELEMENTS = 2**22
_LEAST_LOG = -60.0


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: softcap · tanh(scale · (h Wᵀ + b) / softcap)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def width(self) -> int:
        return int(self.weight_VH.shape[1])

    def logits(self, hidden_NH: Tensor, rows: slice = slice(None)) -> Tensor:
        """[N, rows] in float32 or better."""
        bias = None if self.bias_V is None else self.bias_V[rows]
        logits_NP = _at_least_float32(F.linear(hidden_NH, self.weight_VH[rows], bias))
        if self.scale != 1.0:
            logits_NP = logits_NP * self.scale
        return logits_NP if self.softcap is None else self.softcap * torch.tanh(logits_NP / self.softcap)

    def pieces(self, positions: int) -> Iterator[slice]:
        """The vocabulary in pieces of rows."""
        rows, length = self.weight_VH.shape[0], max(1, _PIECE_ELEMENTS // max(1, positions))
        return (slice(start, min(start + length, rows)) for start in range(0, rows, length))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def output_head(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Head:
    """The model's head, its weight in `dtype` (the model's own where None).

    Raises UserError when the head is not a linear layer.
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(layer, torch.nn.Linear):
        raise UserError(f"{model.config.model_type}: its output head is no linear layer ({type(layer).__name__})")
    scale = getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1
    )  # Cohere, Granite
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if dtype is not None:
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return Head(weight, bias, float(scale), getattr(config, "final_logit_softcapping", None))


def hidden_states(model: PreTrainedModel, token_ids_BS: Tensor, position_ids_BS: Tensor) -> Tensor:
    """[B, S, H] what the head takes; positions that start again at 0 begin a new example in the row."""
    output = model.base_model(input_ids=token_ids_BS, position_ids=position_ids_BS, use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]


def token_and_boundary_logprobs(
    hidden_NH: Tensor, targets_N: Tensor, head: Head, boundary_ids_K: Tensor
) -> tuple[Tensor, Tensor]:
    """([N], [N]) float32: log p(target | position), and log Σ_{k ∈ boundary} p(k | position).

    `boundary_ids_K` is sorted. Differentiable with respect to the hidden states and the head's weight and bias.
    """
    result: tuple[Tensor, Tensor] = _TwoLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, targets_N, head.weight_VH, head.bias_V, head.scale, head.softcap, boundary_ids_K
    )
    return result


class _TwoLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        targets_N: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        boundary_ids_K: Tensor,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight_VH, bias_V, scale, softcap)
        token_N, boundary_N, total_N = _logprobs(hidden_NH, targets_N, head, boundary_ids_K)
        ctx.save_for_backward(hidden_NH, targets_N, weight_VH, bias_V, boundary_ids_K, total_N, boundary_N)
        ctx.scale, ctx.softcap = scale, softcap
        return token_N, boundary_N

    @staticmethod
    def backward(ctx: Any, grad_token_N: Tensor, grad_boundary_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, targets_N, weight_VH, bias_V, boundary_ids_K, total_N, boundary_N = ctx.saved_tensors
        head = Head(weight_VH, bias_V, ctx.scale, ctx.softcap)
        grad_hidden_NH = torch.zeros_like(_at_least_float32(hidden_NH))
        grad_weight_VH = torch.empty_like(weight_VH)
        grad_bias_V = None if bias_V is None else torch.empty_like(bias_V)
        for rows in head.pieces(len(hidden_NH)):
            grad_NP = _piece_gradient(
                head.logits(hidden_NH, rows),
                targets_N - rows.start,
                _within(boundary_ids_K, rows),
                total_N,
                boundary_N,
                grad_token_N,
                grad_boundary_N,
                head,
            )
            grad_hidden_NH += grad_NP.to(weight_VH.dtype) @ weight_VH[rows]
            grad_weight_VH[rows] = (grad_NP.T @ _at_least_float32(hidden_NH)).to(weight_VH.dtype)
            if grad_bias_V is not None:
                grad_bias_V[rows] = grad_NP.sum(0).to(grad_bias_V.dtype)
        return grad_hidden_NH.to(hidden_NH.dtype), None, grad_weight_VH, grad_bias_V, None, None, None


def _logprobs(
    hidden_NH: Tensor, targets_N: Tensor, head: Head, boundary_ids_K: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[N] each: log p(target), log p(boundary), and the logarithm of the normaliser."""
    highest_N: Tensor | None = None
    for rows in head.pieces(len(hidden_NH)):
        logits_NP = head.logits(hidden_NH, rows)
        if highest_N is None:
            highest_N = torch.full_like(logits_NP[:, 0], -torch.inf)
            target_N, total_N, boundary_N = (torch.zeros_like(highest_N) for _ in range(3))
        before_N, highest_N = highest_N, torch.maximum(highest_N, logits_NP.amax(-1))
        inside = (targets_N >= rows.start) & (targets_N < rows.stop)
        target_N[inside] = logits_NP[inside, targets_N[inside] - rows.start]
        weights_NP = logits_NP.sub_(highest_N[:, None]).exp_()
        shrink_N = (before_N - highest_N).exp()
        is_boundary_P = torch.zeros_like(weights_NP[0]).index_fill_(0, _within(boundary_ids_K, rows), 1.0)
        total_N = total_N * shrink_N + weights_NP.sum(-1)
        # no matrix product: where those round to bfloat16, a sum of all but everything came out above everything
        boundary_N = boundary_N * shrink_N + weights_NP.mul_(is_boundary_P).sum(-1)
    assert highest_N is not None
    total_N, boundary_N = highest_N + total_N.log(), boundary_N.log() - total_N.log()
    # where every boundary token's weight is too small for float32 beside the highest, sum them among themselves
    lost = boundary_N < _LEAST_LOG
    if lost.any():
        boundary_N[lost] = _boundary_alone(hidden_NH[lost], head, boundary_ids_K) - total_N[lost]
    # their sums are rounded in other orders, and the objective has no logarithm of a chance above one
    return (target_N - total_N).clamp_(max=0), boundary_N.clamp_(max=0), total_N


def _boundary_alone(hidden_NH: Tensor, head: Head, boundary_ids_K: Tensor) -> Tensor:
    """[N] log Σ exp(logit) over the boundary tokens."""
    parts = [
        head.logits(hidden_NH, rows).index_select(-1, _within(boundary_ids_K, rows)).logsumexp(-1)
        for rows in head.pieces(len(hidden_NH))
    ]
    alone_N: Tensor = torch.stack(parts).logsumexp(0)
    return alone_N


def _within(boundary_ids_K: Tensor, rows: slice) -> Tensor:
    """The boundary tokens of a piece, counted from its first row."""
    ends = torch.tensor([rows.start, rows.stop], device=boundary_ids_K.device)
    first, last = torch.searchsorted(boundary_ids_K, ends).tolist()
    piece_K: Tensor = boundary_ids_K[first:last] - rows.start
    return piece_K


def _piece_gradient(
    logits_NP: Tensor,
    targets_N: Tensor,
    boundary_ids_K: Tensor,
    total_N: Tensor,
    boundary_N: Tensor,
    grad_token_N: Tensor,
    grad_boundary_N: Tensor,
    head: Head,
) -> Tensor:
    """[N, P] the gradient before scale and cap: g_token (onehot − p) + g_boundary (p restricted to the set − p).

    Targets and boundary tokens are counted from the piece's first row; targets may lie outside.
    """
    slope_NP = None if head.softcap is None else 1 - (logits_NP / head.softcap) ** 2
    among_boundary_NK = (logits_NP.index_select(-1, boundary_ids_K) - (total_N + boundary_N)[:, None]).exp_()
    grad_NP: Tensor = logits_NP.sub_(total_N[:, None]).exp_().mul_(-(grad_token_N + grad_boundary_N)[:, None])
    grad_NP.index_add_(-1, boundary_ids_K, among_boundary_NK.mul_(grad_boundary_N[:, None]))
    inside = (targets_N >= 0) & (targets_N < grad_NP.shape[-1])
    grad_NP[inside, targets_N[inside]] += grad_token_N[inside]
    grad_NP = grad_NP if slope_NP is None else grad_NP * slope_NP
    return grad_NP if head.scale == 1.0 else grad_NP * head.scale
