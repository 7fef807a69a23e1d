"""How a step's terms are weighted: by fixed numbers or ramps, or by the inverse of their gradients."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from alm_pipeline.config import ObjectiveConfig, Ramp, Term
from storage.errors import UserError

_EPSILON = 1e-8


def weights_at(objective: ObjectiveConfig, step: int) -> dict[Term, float]:
    """The configured weights of the step after so many."""
    return {term: weight.at(step) if isinstance(weight, Ramp) else weight for term, weight in objective.terms.items()}


def gradmag(
    terms: Mapping[Term, Tensor], weights: Mapping[Term, float | Tensor], parameters: Sequence[nn.Parameter]
) -> dict[Term, Tensor]:
    """GradMag (arXiv 2503.20083): each weight divided by its term's gradient norm, scaled to sum to 1.

    `parameters` are those of the last transformer layer. The result is detached. It is of this micro-batch: each of a
    step's has its own, so that it makes no difference which process has which. Raises UserError where no parameter is
    given.
    """
    if not parameters:
        raise UserError("objective.balance: gradmag looks at the last layer, and nothing of it is trained: take fixed")
    chosen = [term for term, weight in weights.items() if weight]
    norms = torch.stack([_gradient_norm(terms[term], parameters) for term in chosen])
    inverse = norms.new_tensor([float(weights[term]) for term in chosen]) / (norms + _EPSILON)
    return dict(zip(chosen, inverse / inverse.sum(), strict=True))


def _gradient_norm(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([gradient.float().square().sum() for gradient in gradients if gradient is not None]).sum().sqrt()


def layers(model: nn.Module) -> nn.ModuleList:
    """A model's transformer layers: its longest list of modules."""
    return max((part for part in model.modules() if isinstance(part, nn.ModuleList)), key=len)


def last_layer(model: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of a model's last transformer layer."""
    return [parameter for parameter in layers(model)[-1].parameters() if parameter.requires_grad]
