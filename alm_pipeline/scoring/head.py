"""The output head without a dense log-softmax: two numbers a position, in pieces of positions.

Shapes: N positions, H hidden width, V vocabulary rows, K boundary tokens. From a position's hidden state come the
log-probability of the observed next token and the log-probability that the next token is a boundary token.
Logits exist for one piece at a time, in float32, in the forward and again in the backward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from storage.errors import UserError

_PIECE_ELEMENTS = 2**24
_LEAST_LOG = -60.0


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: softcap · tanh(scale · (h Wᵀ + b) / softcap)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_NH: Tensor) -> Tensor:
        logits_NV = _at_least_float32(F.linear(hidden_NH, self.weight_VH, self.bias_V)) * self.scale
        return logits_NV if self.softcap is None else self.softcap * torch.tanh(logits_NV / self.softcap)


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

    Differentiable with respect to the hidden states and the head's weight and bias.
    """
    result: tuple[Tensor, Tensor] = _TwoLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, targets_N, head.weight_VH, head.bias_V, head.scale, head.softcap, boundary_ids_K
    )
    return result


def _piece_length(vocabulary: int) -> int:
    return max(1, _PIECE_ELEMENTS // vocabulary)


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
        pieces = [
            _piece_logprobs(head.logits(hidden), targets, boundary_ids_K)
            for hidden, targets in _pieces(head, hidden_NH, targets_N)
        ]
        token_N, boundary_N, total_N = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.save_for_backward(hidden_NH, targets_N, weight_VH, bias_V, boundary_ids_K, total_N, boundary_N)
        ctx.scale, ctx.softcap = scale, softcap
        return token_N, boundary_N

    @staticmethod
    def backward(ctx: Any, grad_token_N: Tensor, grad_boundary_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, targets_N, weight_VH, bias_V, boundary_ids_K, total_N, boundary_N = ctx.saved_tensors
        head = Head(weight_VH, bias_V, ctx.scale, ctx.softcap)
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_weight_VH = torch.zeros_like(_at_least_float32(weight_VH))
        grad_bias_V = None if bias_V is None else torch.zeros_like(_at_least_float32(bias_V))
        start = 0
        for hidden, targets in _pieces(head, hidden_NH, targets_N):
            span = slice(start, start := start + len(hidden))
            grad_logits = _piece_gradient(
                head,
                hidden,
                targets,
                boundary_ids_K,
                total_N[span],
                boundary_N[span],
                grad_token_N[span],
                grad_boundary_N[span],
            )
            grad_hidden_NH[span] = grad_logits.to(weight_VH.dtype) @ weight_VH
            grad_weight_VH += grad_logits.T @ _at_least_float32(hidden)
            if grad_bias_V is not None:
                grad_bias_V += grad_logits.sum(0)
        grad_bias_V = None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype)
        return grad_hidden_NH, None, grad_weight_VH.to(weight_VH.dtype), grad_bias_V, None, None, None


def _pieces(head: Head, hidden_NH: Tensor, targets_N: Tensor) -> list[tuple[Tensor, Tensor]]:
    length = _piece_length(head.weight_VH.shape[0])
    return list(zip(hidden_NH.split(length), targets_N.split(length), strict=True))


def _piece_logprobs(logits_NV: Tensor, targets_N: Tensor, boundary_ids_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N] each: log p(target), log p(boundary), and the logarithm of the normaliser."""
    highest_N = logits_NV.amax(-1)
    weights_NV = (logits_NV - highest_N[:, None]).exp_()
    is_boundary_V = torch.zeros_like(weights_NV[0]).index_fill_(0, boundary_ids_K, 1.0)
    total_N = highest_N + weights_NV.sum(-1).log()
    boundary_N = highest_N + torch.mv(weights_NV, is_boundary_V).log() - total_N
    # where every boundary token's weight is too small for float32 beside the highest, sum them among themselves
    lost = boundary_N < _LEAST_LOG
    boundary_N[lost] = logits_NV[lost].index_select(-1, boundary_ids_K).logsumexp(-1) - total_N[lost]
    return logits_NV.gather(-1, targets_N[:, None]).squeeze(-1) - total_N, boundary_N, total_N


def _piece_gradient(
    head: Head,
    hidden_NH: Tensor,
    targets_N: Tensor,
    boundary_ids_K: Tensor,
    total_N: Tensor,
    boundary_N: Tensor,
    grad_token_N: Tensor,
    grad_boundary_N: Tensor,
) -> Tensor:
    """[N, V] the gradient before scale and cap: g_token (onehot − p) + g_boundary (p restricted to the set − p)."""
    logits_NV = head.logits(hidden_NH)
    slope_NV = None if head.softcap is None else 1 - (logits_NV / head.softcap) ** 2
    among_boundary_NK = (logits_NV.index_select(-1, boundary_ids_K) - (total_N + boundary_N)[:, None]).exp_()
    grad_NV = (logits_NV - total_N[:, None]).exp_().mul_(-(grad_token_N + grad_boundary_N)[:, None])
    grad_NV.index_add_(-1, boundary_ids_K, among_boundary_NK.mul_(grad_boundary_N[:, None]))
    grad_NV.scatter_add_(-1, targets_N[:, None], grad_token_N[:, None])
    grad_NV = grad_NV if slope_NV is None else grad_NV * slope_NV
    return grad_NV * head.scale
