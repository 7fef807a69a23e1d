"""Triton kernels that read a piece of logits once: the sums of its tokens, and the gradient in place of the logits.

Shapes: N positions, P rows of a piece. PyTorch's own operations read and write a piece some eight times, which on a GPU
takes about as long as the matrix product that made it. Scale and cap are applied here, so the product's outputs are
taken as they are, in the weight's dtype. On a processor the kernels run only under Triton's interpreter, for tests.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 4096
_GRADIENT_COLUMNS = 2048
_WARPS = 8


@triton.jit
def _capped(outputs, scale, softcap, capped: tl.constexpr):
    logits = outputs * scale
    if capped:
        # tanh(x) = 2 sigmoid(2x) − 1
        logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)
    return logits


@triton.jit
def _moments(weights, differences):
    # a weight whose logarithm is below −1000 is 0 in every dtype, and 0 · −∞ would be NaN
    return weights * tl.maximum(differences, -1000.0)


@triton.jit
def _add_kernel(
    outputs,
    highest,
    total,
    spread,
    target,
    places,
    stride,
    columns,
    first,
    scale,
    softcap,
    capped: tl.constexpr,
    entropy: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    number = total.dtype.element_ty
    peak, weights_sum = tl.load(highest + row), tl.load(total + row)
    moment = tl.load(spread + row)
    for start in range(0, columns, block):
        offsets = start + tl.arange(0, block)
        inside = offsets < columns
        values = tl.load(outputs + row * stride + offsets, mask=inside, other=0).to(number)
        logits = tl.where(inside, _capped(values, scale, softcap, capped), float("-inf"))
        risen = tl.maximum(peak, tl.max(logits, 0))
        weights = tl.exp(logits - risen)
        shrink = tl.exp(peak - risen)
        if entropy:
            moment = (moment + (peak - risen) * weights_sum) * shrink + tl.sum(_moments(weights, logits - risen), 0)
        weights_sum = weights_sum * shrink + tl.sum(weights, 0)
        peak = risen
    tl.store(highest + row, peak)
    tl.store(total + row, weights_sum)
    if entropy:
        tl.store(spread + row, moment)
    place = tl.load(places + row) - first
    found = (place >= 0) & (place < columns)
    value = tl.load(outputs + row * stride + tl.where(found, place, 0)).to(number)
    tl.store(target + row, _capped(value, scale, softcap, capped), mask=found)


@triton.jit
def _gradient_kernel(
    outputs,
    highest,
    level,
    spread,
    target_grad,
    places,
    stride,
    columns,
    first,
    scale,
    softcap,
    capped: tl.constexpr,
    entropy: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * block + tl.arange(0, block)
    inside = offsets < columns
    number = level.dtype.element_ty
    at = outputs + row * stride + offsets
    logits = _capped(tl.load(at, mask=inside, other=0).to(number), scale, softcap, capped)
    difference = tl.where(inside, logits - tl.load(highest + row), 0.0)
    weights = tl.exp(difference)
    gradient = weights * tl.load(level + row)
    if entropy:
        gradient += _moments(weights, difference) * tl.load(spread + row)
    gradient += tl.where(offsets == tl.load(places + row) - first, tl.load(target_grad + row), 0.0)
    if capped:
        gradient *= 1 - (logits / softcap) * (logits / softcap)
    tl.store(at, (gradient * scale).to(outputs.dtype.element_ty), mask=inside)


def add_piece(
    outputs_NP: Tensor,
    scale: float,
    softcap: float | None,
    sums: tuple[Tensor, Tensor, Tensor | None],
    target_N: Tensor,
    places_N: Tensor,
    first: int,
) -> None:
    """Add a piece to the maxima, sums and moments [N] of its group, and note the targets' logits that it has; in place.

    `sums` are the highest logit so far, Σ exp(logit − highest), and Σ exp(logit − highest) · (logit − highest) or None;
    `places_N` are the targets' places in the vocabulary, of which the piece's first column has `first`.
    """
    if outputs_NP.numel():
        _check_rows(outputs_NP)
        highest_N, total_N, spread_N = sums
        _launch(
            _add_kernel,
            (len(outputs_NP),),
            (outputs_NP, highest_N, total_N, total_N if spread_N is None else spread_N, target_N, places_N),
            (first, scale, softcap, spread_N is not None, _COLUMNS),
        )


def logits_to_gradient(
    outputs_NP: Tensor,
    scale: float,
    softcap: float | None,
    slope: tuple[Tensor, Tensor, Tensor | None],
    target_grad_N: Tensor,
    places_N: Tensor,
    first: int,
) -> None:
    """Overwrite a piece by the gradient of the layer's own outputs, in their dtype.

    `slope` are the group's highest logit, and the factors of weight = exp(logit − highest) and of weight · log(weight)
    (None: 0), all [N]; `target_grad_N` is added at the targets.
    """
    if outputs_NP.numel():
        _check_rows(outputs_NP)
        highest_N, level_N, spread_N = slope
        _launch(
            _gradient_kernel,
            (len(outputs_NP), triton.cdiv(outputs_NP.shape[1], _GRADIENT_COLUMNS)),
            (outputs_NP, highest_N, level_N, level_N if spread_N is None else spread_N, target_grad_N, places_N),
            (first, scale, softcap, spread_N is not None, _GRADIENT_COLUMNS),
        )


def _check_rows(outputs_NP: Tensor) -> None:
    assert outputs_NP.stride(1) == 1, "the kernels read a row's columns one after another"


def _launch(kernel: Any, grid: tuple[int, ...], tensors: tuple[Tensor, ...], rest: tuple[Any, ...]) -> None:
    first, scale, softcap, entropy, block = rest
    outputs_NP = tensors[0]
    numbers = outputs_NP.stride(0), outputs_NP.shape[1], first, scale, 1.0 if softcap is None else softcap
    with _on_device_of(outputs_NP):
        kernel[grid](*tensors, *numbers, capped=softcap is not None, entropy=entropy, block=block, num_warps=_WARPS)


def _on_device_of(tensor: Tensor) -> Any:
    # Triton launches on the thread's current device
    return torch.cuda.device_of(tensor)
