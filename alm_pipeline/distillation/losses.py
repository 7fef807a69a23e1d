"""All terms of a micro-batch: the student's forward pass, a live teacher's where one is needed, and their losses.

Shapes: B rows, S student positions a row, N = B·S, H hidden width; M teacher positions, A aligned chunks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.distillation.live_teacher import LiveTeacher
from alm_pipeline.objective.batch_loss import BatchLosses, Counts, batch_losses
from alm_pipeline.objective.latents import latents_loss
from alm_pipeline.scoring.head import hidden_states, output_head, token_and_boundary_logprobs
from alm_pipeline.scoring.vocabulary import Vocabulary

_FROM_SCORES = ("predicted_N", "chunk_of_token_N", "last_token_C", "teacher_logprobs_C")


def micro_batch_losses(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    objective: ObjectiveConfig,
    counts: Counts,
    teacher: LiveTeacher | None = None,
) -> BatchLosses:
    """Every term of the objective for a batch of `BatchStream`; `vocabulary` is the student's."""
    hidden_BSH = hidden_states(model, batch["token_ids_BS"], batch["position_ids_BS"])
    with torch.autocast(hidden_BSH.device.type, enabled=False):
        hidden_NH = hidden_BSH.flatten(0, 1).to(model.dtype)
        head, next_ids_N = output_head(model, rows=vocabulary.rows), batch["token_ids_BS"].flatten().roll(-1)
        boundary_ids_K = vocabulary.boundary_ids_K.to(hidden_NH.device)
        numbers = token_and_boundary_logprobs(hidden_NH, next_ids_N, head, boundary_ids_K)
        named: dict[str, Any] = {name: batch[name] for name in _FROM_SCORES}
        losses = batch_losses(*numbers, **named, objective=objective, counts=counts)
        if teacher:
            hidden_MJ = teacher.hidden(batch["teacher_token_ids_BT"], batch["teacher_position_ids_BT"])
            losses.terms.update(_live_terms(hidden_MJ, hidden_NH, batch, objective, counts, _projections(model)))
    return losses


def _live_terms(
    teacher_hidden_MJ: Tensor,
    hidden_NH: Tensor,
    batch: Mapping[str, Tensor],
    objective: ObjectiveConfig,
    counts: Counts,
    projections: Mapping[str, nn.Module],
) -> dict[Any, Tensor]:
    terms = {}
    if "latents" in objective.terms:
        student_AH = hidden_NH[batch["aligned_token_A"]]
        project = projections.get("latents")
        terms["latents"] = latents_loss(
            teacher_hidden_MJ[batch["aligned_teacher_token_A"]],
            project(student_AH) if project else student_AH,
            counts.aligned,
        )
    return terms


_PROJECTIONS = "alm_projections"


def attach_projections(model: PreTrainedModel, projections: nn.ModuleDict) -> None:
    """Make them part of the model while it is trained: optimised, kept in checkpoints, on its device."""
    if len(projections):
        model.add_module(_PROJECTIONS, projections.to(model.device))


def detach_projections(model: PreTrainedModel) -> None:
    if hasattr(model, _PROJECTIONS):
        delattr(model, _PROJECTIONS)


def _projections(model: PreTrainedModel) -> Mapping[str, nn.Module]:
    return dict(getattr(model, _PROJECTIONS, {}))
