"""Sums over positions whose logits exist for a piece of the positions at a time.

A baseline compares whole distributions, and those of a batch (positions × vocabulary, in float32) would take tens of
gigabytes. A sum's gradient is the sum of its pieces' gradients, so each piece is differentiated as soon as it is there
and its logits are let go. What is kept for the backward pass are the gradients: as large as the hidden states and the
heads' weights, and nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alm_pipeline.models.output_head import Head

Term = Callable[..., Tensor]
"""of a piece's rows, then the shared tensors: the scalar that the piece adds"""

_PIECE_ELEMENTS = 2**25
"""logits of a piece: 128 MiB in float32, at least some hundred positions of today's vocabularies"""


def sum_in_pieces(
    term: Term, by_position: Sequence[Tensor], shared: Sequence[Tensor | None], vocabulary: int
) -> Tensor:
    """Scalar: the sum of a term over pieces of the positions, differentiable once in each tensor.

    `by_position` all have the positions as their first dimension; `vocabulary` is the most logits that the term makes a
    position. The term may use no other tensor that wants a gradient, and runs without autocast: hidden states have to
    be of their head's dtype.
    """
    length = max(1, _PIECE_ELEMENTS // vocabulary)
    with without_autocast(by_position[0]):
        total: Tensor = _SumInPieces.apply(  # type: ignore[no-untyped-call]
            term, length, len(by_position), torch.is_grad_enabled(), *by_position, *shared
        )
    return total


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context for what has to be as exact as its tensors; autocast would also keep a weight's copy for each piece."""
    return torch.autocast(tensor.device.type, enabled=False)


def with_weights(head: Head, weight_VH: Tensor, bias_V: Tensor | None) -> Head:
    """The head with other tensors: inside a term, those that the term was given."""
    return replace(head, weight_VH=weight_VH, bias_V=bias_V)


def frozen(head: Head) -> Head:
    """The head without gradients."""
    return with_weights(head, head.weight_VH.detach(), None if head.bias_V is None else head.bias_V.detach())


class _SumInPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, term: Term, length: int, split: int, differentiate: bool, *tensors: Tensor | None) -> Tensor:
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[4:]) if needed and differentiate]
        gradients = {index: _accumulator(tensors[index]) for index in wanted}
        positions, values = len(_present(tensors[0])), []
        for start in range(0, max(1, positions), length):  # no position at all: one empty piece
            rows = slice(start, start + length)
            piece = [*(_present(tensor)[rows] for tensor in tensors[:split]), *tensors[split:]]
            value, found = _differentiated(term, piece, wanted)
            values.append(value)
            for index, gradient in found.items():
                (gradients[index][rows] if index < split else gradients[index]).add_(gradient)
        ctx.wanted = wanted
        ctx.save_for_backward(*(gradients[index].to(_present(tensors[index]).dtype) for index in wanted))
        return torch.stack(values).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for index, gradient in zip(ctx.wanted, ctx.saved_tensors, strict=True):
            scaled[index + 4] = gradient * grad.to(gradient.dtype)
        return tuple(scaled)


def _differentiated(
    term: Term, piece: Sequence[Tensor | None], wanted: Sequence[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """A piece's value, and its gradient with respect to the tensors that want one and are used."""
    leaves = [None if tensor is None else tensor.detach() for tensor in piece]
    with torch.set_grad_enabled(bool(wanted)):
        inputs = [_present(leaves[index]).requires_grad_() for index in wanted]
        value = term(*leaves)
        found = torch.autograd.grad(value, inputs, allow_unused=True) if inputs else ()
    pairs = zip(wanted, found, strict=True)
    return value.detach(), {index: gradient for index, gradient in pairs if gradient is not None}


def _accumulator(tensor: Tensor | None) -> Tensor:
    """Zeros in float32 or better: a weight's gradient is the sum over many pieces."""
    present = _present(tensor)
    return torch.zeros_like(present, dtype=torch.promote_types(present.dtype, torch.float32))


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
