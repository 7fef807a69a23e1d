"""The weights of a step's terms: fixed numbers, ramps, or both divided by the norms of the terms' gradients."""

from collections.abc import Mapping, Sequence
from typing import assert_never

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alm_pipeline.config import Balance, ObjectiveConfig, Ramp, Term
from alm_pipeline.models.output_head import headless
from alm_pipeline.objective.divergences import TEMPERATURE_POWERS
from storage.errors import UserError

_EPSILON = 1e-8


def weights_at(objective: ObjectiveConfig, step: int) -> dict[Term, float]:
    """Return the configured weights after `step` steps, scaled where that needs no gradients."""
    weights = {
        term: weight.at(step) if isinstance(weight, Ramp) else weight for term, weight in objective.terms.items()
    }
    if objective.balance == "temperature" and "alm" in weights:
        weights["alm"] *= objective.temperature ** TEMPERATURE_POWERS[objective.divergence]
    return weights


def uses_gradients(balance: Balance) -> bool:
    """Whether the weights depend on the gradients of the terms, so that `gradmag` has to be called."""
    match balance:
        case "fixed" | "temperature":
            return False
        case "gradmag":
            return True
        case _:
            assert_never(balance)


def gradmag(
    terms: Mapping[Term, Tensor], weights: Mapping[Term, float | Tensor], parameters: Sequence[nn.Parameter]
) -> dict[Term, Tensor]:
    """Return GradMag's weights (arXiv 2503.20083): each weight over its term's gradient norm, scaled to sum to 1.

    `parameters` are the trained parameters of the last transformer layer. The result is detached. The weights of a
    micro-batch depend on it alone, and not on how micro-batches are shared between processes. Raises UserError if
    `parameters` is empty.
    """
    require_last_layer(parameters)
    weighted = [term for term, weight in weights.items() if weight]
    norms = torch.stack([_gradient_norm(terms[term], parameters) for term in weighted])
    inverse = norms.new_tensor([float(weights[term]) for term in weighted]) / (norms + _EPSILON)
    return dict(zip(weighted, inverse / inverse.sum(), strict=True))


def require_last_layer(parameters: Sequence[nn.Parameter]) -> None:
    """Raise UserError if there is no trained parameter of the last layer to balance terms by."""
    if not parameters:
        raise UserError(
            "objective.balance: gradmag needs gradients of the last layer, and no parameter of it is trained: use fixed"
        )


def _gradient_norm(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([gradient.float().square().sum() for gradient in gradients if gradient is not None]).sum().sqrt()


def layers(model: nn.Module) -> nn.ModuleList:
    """Return the transformer layers that compute a model's hidden states: their longest list of modules.

    Raises UserError if it has no list of modules.
    """
    part: nn.Module = headless(model) if isinstance(model, PreTrainedModel) else model
    lists = [module for module in part.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(
            f"{type(model).__name__}: has no list of layers, which objective.balance gradmag, train.compile and "
            "train.sharding need: leave them out"
        )
    return max(lists, key=len)


def last_layer(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters of a model's last transformer layer."""
    return [parameter for parameter in layers(model)[-1].parameters() if parameter.requires_grad]
