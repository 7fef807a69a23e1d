"""The head by libraries' fused cross-entropies: they give −log p of one token, and with it a logarithm of a sum.

Shapes: N positions, H hidden width, V vocabulary rows. The vocabulary has its boundary tokens first. The loss of any
token t of a half, among the tokens of this half alone, is log Σ exp(logit) − logit_t. So one call on each half gives
both sums, and no product is computed twice. Gradients are those of the library.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from alm_pipeline.models.output_head import Head, at_least_float32

Loss = Callable[[Tensor, Tensor, Tensor | None, float, Tensor], Tensor]
"""(hidden states [N, H], weight [V, H], bias [V] or None, scale, targets [N]) → [N] −log p(target)"""


class Library(NamedTuple):
    """A library's loss, and for which heads it is one."""

    problem: Callable[[Head], str]
    """why it can't compute this head; "" if it can"""
    loss: Loss


def _torch_problem(head: Head) -> str:
    if not hasattr(F, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no linear_cross_entropy"
    return "it has no scale and no cap" if head.scale != 1.0 or head.softcap is not None else ""


def _torch_loss(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, scale: float, targets_N: Tensor) -> Tensor:
    # from torch 2.13 on
    losses_N: Tensor = F.linear_cross_entropy(
        hidden_NH,
        weight_VH,
        targets_N,
        linear_bias=bias_V,
        reduction="none",
        options=torch.nn.LinearCrossEntropyOptions(),
    )
    return losses_N


def _liger_problem(head: Head) -> str:
    if head.device.type != "cuda" or torch.cuda.get_device_capability(head.device) != (9, 0):
        return "its fused kernel is for Hopper GPUs"
    if head.dtype != torch.bfloat16:
        return "its fused kernel is for bfloat16"
    if head.bias_V is not None or head.softcap is not None:
        return "it has no bias and no cap"
    for module in ("liger_kernel.ops.fused_linear_scaled_cross_entropy", "cutlass"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"not installed ({error})"
    return ""


def _liger_loss(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, scale: float, targets_N: Tensor) -> Tensor:
    module: Any = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    losses_N: Tensor = module.LigerFusedLinearScaledCrossEntropyFunction.apply(
        hidden_NH, weight_VH, targets_N, 1 / scale
    )
    return losses_N


LIBRARIES: Mapping[str, Library] = {
    "torch": Library(_torch_problem, _torch_loss),
    "liger": Library(_liger_problem, _liger_loss),
}


def token_and_boundary(
    loss: Loss, hidden_NH: Tensor, head: Head, sorted_ids_V: Tensor | None, boundary: int, targets_N: Tensor
) -> tuple[Tensor, Tensor]:
    """([N], [N]) log p(target), and log Σ p of the first `boundary` tokens; in float32 or better.

    `sorted_ids_V` are the head's rows with the boundary tokens first; None: the head's own first rows are these.
    Differentiable once. A target of −1 is a padding row.
    """
    if sorted_ids_V is None:
        weight_VH, bias_V = head.weight_VH[: head.vocabulary], head.bias_V
        bias_V = None if bias_V is None else bias_V[: head.vocabulary]
    else:
        weight_VH = head.weight_VH[sorted_ids_V]
        bias_V = None if head.bias_V is None else head.bias_V[sorted_ids_V]
    ordered = Head(weight_VH, bias_V, head.scale)
    sum_of = partial(_log_sum, loss, hidden_NH, ordered)
    boundary_N, others_N = sum_of(slice(0, boundary)), sum_of(slice(boundary, len(weight_VH)))
    log_total_N = torch.logaddexp(boundary_N, others_N)
    logits_N = ordered.token_logits(hidden_NH, targets_N.clamp(min=0))
    token_N = (logits_N - log_total_N).clamp(max=0).masked_fill(targets_N < 0, -torch.inf)
    return token_N, _share(boundary_N, others_N)


def _log_sum(loss: Loss, hidden_NH: Tensor, head: Head, rows: slice) -> Tensor:
    """[N] log Σ exp(logit) over a range of rows; −∞ for none."""
    if rows.start == rows.stop:
        return at_least_float32(hidden_NH.new_full((len(hidden_NH),), -torch.inf))
    bias_V = None if head.bias_V is None else head.bias_V[rows]
    # a row for each position: of a single one, the gradients would cancel to the rounding error of their sum
    some_N = torch.arange(len(hidden_NH), device=hidden_NH.device) % (rows.stop - rows.start)
    losses_N = loss(hidden_NH, head.weight_VH[rows], bias_V, head.scale, some_N)
    return at_least_float32(losses_N) + head.token_logits(hidden_NH, some_N + rows.start)


def _share(boundary_N: Tensor, others_N: Tensor) -> Tensor:
    """[N] the logarithm of the boundary tokens' share: 0 without other tokens, −∞ without boundary tokens."""
    if (boundary_N == -torch.inf).all():
        return boundary_N
    return -F.softplus(others_N - boundary_N)
