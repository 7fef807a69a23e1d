"""Projections of a student's hidden states to the teacher's width, trained beside the student but not part of it."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

_NAME = "alm_projections"


def attach_projections(model: PreTrainedModel, projections: nn.ModuleDict) -> None:
    """Make the projections part of the model during training: optimized, in checkpoints, on its device."""
    if len(projections):
        model.add_module(_NAME, projections.to(model.device))


def detach_projections(model: PreTrainedModel) -> None:
    if hasattr(model, _NAME):
        delattr(model, _NAME)


def projections_of(model: PreTrainedModel) -> Mapping[str, nn.Module]:
    """Return the projections that are attached to a model, by term."""
    return dict(getattr(model, _NAME, {}))
