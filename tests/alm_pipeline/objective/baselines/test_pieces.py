"""The memory that the baselines use, and sums in pieces."""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.baselines import pieces
from alm_pipeline.objective.baselines.dskd import DskdProjections, dskd_loss
from alm_pipeline.objective.baselines.mined import mined_loss
from alm_pipeline.objective.baselines.pieces import sum_in_pieces
from alm_pipeline.objective.baselines.uld import uld_loss

POSITIONS, WIDTH, VOCABULARY, PIECE = 200, 4, 1000, 10


class Largest(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


class Saved:
    """Counts tensors that are saved for a later backward pass; those of a piece are freed with it."""

    def __init__(self, tensor: Tensor, register: "WeakSet[Saved]") -> None:
        self.tensor = tensor
        register.add(self)


def one_example_losses() -> dict[str, Callable[[Tensor, Head], Tensor]]:
    ones, none = torch.ones(POSITIONS, dtype=torch.bool), torch.zeros(POSITIONS, dtype=torch.int64)
    predicted = ones.clone()
    predicted[0] = False
    teacher, head_teacher = torch.randn(POSITIONS, WIDTH), Head(torch.randn(VOCABULARY, WIDTH))
    projections, places = DskdProjections(WIDTH, WIDTH), torch.arange(POSITIONS)
    return {
        "uld": lambda hidden, head: uld_loss(teacher, hidden, head_teacher, head, predicted, predicted, none, none),
        "mined": lambda hidden, head: mined_loss(
            teacher, hidden, head_teacher, head, places, places, torch.arange(VOCABULARY)
        ),
        "dskd": lambda hidden, head: dskd_loss(
            projections, teacher, hidden, teacher, teacher, head_teacher, head, places, predicted, predicted, none, none
        ),
    }


@pytest.mark.parametrize("baseline", ["uld", "mined", "dskd"])
def test_no_tensor_has_the_logits_of_the_batch(baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE_ELEMENTS", PIECE * VOCABULARY)
    torch.manual_seed(0)
    loss = one_example_losses()[baseline]
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    head = Head(torch.randn(VOCABULARY, WIDTH, requires_grad=True))
    saved: WeakSet[Saved] = WeakSet()
    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: Saved(tensor, saved), lambda kept: kept.tensor):
            value = loss(hidden, head)
        sizes = [kept.tensor.numel() for kept in saved]
        value.backward()
    # attention holds the pairs of positions of one example
    held = max(VOCABULARY * WIDTH, POSITIONS**2 if baseline == "dskd" else 0)
    assert max(sizes) <= held
    assert largest.elements <= max(PIECE * VOCABULARY, held) < POSITIONS * VOCABULARY
    assert hidden.grad is not None
    assert hidden.grad.any()


def square(rows: Tensor, shared: Tensor, unused: Tensor | None) -> Tensor:
    return ((rows @ shared) ** 2).sum()


def test_gradients_may_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balancing terms by their gradients' norms computes them twice."""
    monkeypatch.setattr(pieces, "_PIECE_ELEMENTS", 2)
    rows, shared = torch.arange(6.0).view(3, 2).requires_grad_(), torch.tensor([1.0, -2.0], requires_grad=True)
    total = sum_in_pieces(square, [rows], [shared, None], 1)
    first = torch.autograd.grad(3 * total, [rows, shared], retain_graph=True)
    again = torch.autograd.grad(total, [rows, shared])
    expected = torch.autograd.grad(square(rows, shared, None), [rows, shared])
    for ours, once_more, theirs in zip(first, again, expected, strict=True):
        torch.testing.assert_close(ours, 3 * theirs)
        torch.testing.assert_close(once_more, theirs)


def test_nothing_is_differentiated_without_need() -> None:
    rows, shared = torch.ones(3, 2, requires_grad=True), torch.ones(2)
    with torch.no_grad():
        total = sum_in_pieces(square, [rows], [shared, None], 1)
    assert not total.requires_grad
    assert total == 12
    total = sum_in_pieces(square, [rows], [shared, None], 1)
    assert torch.autograd.grad(total, rows)[0].tolist() == [[4, 4]] * 3


@pytest.mark.parametrize("baseline", ["uld", "mined", "dskd"])
def test_autocast_around_the_loss_changes_nothing(baseline: str) -> None:
    torch.manual_seed(0)
    loss = one_example_losses()[baseline]
    hidden, head = torch.randn(POSITIONS, WIDTH), Head(torch.randn(VOCABULARY, WIDTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = loss(hidden, head)
    assert under_autocast == loss(hidden, head)
