"""Sums over positions that hold the logits of only one piece of the positions at a time.

The baselines compare whole distributions, and those of a batch (positions × vocabulary, in float32) would take tens of
gigabytes. The gradient of a sum is the sum of its pieces' gradients, so each piece is differentiated as soon as it is
computed, and its logits are freed. Only the gradients are kept for the backward pass: they are as large as the hidden
states and the heads' weights, and nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alm_pipeline.models.output_head import Head

PieceSum = Callable[..., Tensor]
"""takes the rows of a piece, then the shared tensors; returns the scalar that the piece adds"""

_PIECE_ELEMENTS = 2**25
"""logits per piece: 128 MiB in float32, more than a hundred positions of today's vocabularies"""


def sum_in_pieces(
    piece_sum: PieceSum, by_position: Sequence[Tensor], shared: Sequence[Tensor | None], vocabulary: int
) -> Tensor:
    """Scalar: the sum of `piece_sum` over pieces of the positions, differentiable once with respect to each tensor.

    All tensors of `by_position` have the positions as their first dimension. `vocabulary` is the maximum number of
    logits per position. `piece_sum` may use no other tensor that needs a gradient, and runs without autocast, so hidden
    states must have the dtype of their head.
    """
    length = max(1, _PIECE_ELEMENTS // vocabulary)
    with without_autocast(by_position[0]):
        total: Tensor = _SumInPieces.apply(  # type: ignore[no-untyped-call]
            piece_sum, length, len(by_position), torch.is_grad_enabled(), *by_position, *shared
        )
    return total


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context without autocast: results keep their tensors' precision, and no weight is copied for each piece."""
    return torch.autocast(tensor.device.type, enabled=False)


def with_weights(head: Head, weight_VH: Tensor, bias_V: Tensor | None) -> Head:
    """Return the head with other tensors, such as those that a piece's function receives."""
    return replace(head, weight_VH=weight_VH, bias_V=bias_V)


def frozen(head: Head) -> Head:
    """Return the head without gradients."""
    return with_weights(head, head.weight_VH.detach(), None if head.bias_V is None else head.bias_V.detach())


class _SumInPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, piece_sum: PieceSum, length: int, split: int, differentiate: bool, *tensors: Tensor | None
    ) -> Tensor:
        differentiated = [index for index, needed in enumerate(ctx.needs_input_grad[4:]) if needed and differentiate]
        gradients = {index: _accumulator(tensors[index]) for index in differentiated}
        positions, values = len(_present(tensors[0])), []
        for start in range(0, max(1, positions), length):  # without positions: one empty piece
            rows = slice(start, start + length)
            piece = [*(_present(tensor)[rows] for tensor in tensors[:split]), *tensors[split:]]
            value, piece_gradients = _value_and_gradients(piece_sum, piece, differentiated)
            values.append(value)
            for index, gradient in piece_gradients.items():
                (gradients[index][rows] if index < split else gradients[index]).add_(gradient)
        ctx.differentiated = differentiated
        ctx.save_for_backward(*(gradients[index].to(_present(tensors[index]).dtype) for index in differentiated))
        return torch.stack(values).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for index, gradient in zip(ctx.differentiated, ctx.saved_tensors, strict=True):
            scaled[index + 4] = gradient * grad.to(gradient.dtype)
        return tuple(scaled)


def _value_and_gradients(
    piece_sum: PieceSum, piece: Sequence[Tensor | None], differentiated: Sequence[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return a piece's value, and its gradients with respect to the `differentiated` tensors that it uses."""
    leaves = [None if tensor is None else tensor.detach() for tensor in piece]
    with torch.set_grad_enabled(bool(differentiated)):
        inputs = [_present(leaves[index]).requires_grad_() for index in differentiated]
        value = piece_sum(*leaves)
        gradients = torch.autograd.grad(value, inputs, allow_unused=True) if inputs else ()
    pairs = zip(differentiated, gradients, strict=True)
    return value.detach(), {index: gradient for index, gradient in pairs if gradient is not None}


def _accumulator(tensor: Tensor | None) -> Tensor:
    """Return zeros in float32 or better, since a weight's gradient is the sum over many pieces."""
    present = _present(tensor)
    return torch.zeros_like(present, dtype=torch.promote_types(present.dtype, torch.float32))


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
