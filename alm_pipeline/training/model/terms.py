"""All terms of a micro-batch: the student's forward pass, a live teacher's where one is needed, and their losses.

Shapes: B rows, S student positions a row, N = B·S, H hidden width; M teacher positions, A aligned chunks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alm_pipeline.config import LIVE_TERMS, ObjectiveConfig, Term
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.output_head import Head, LayerHead, hidden_states, output_head
from alm_pipeline.objective.baselines.dskd import DskdProjections, dskd_loss
from alm_pipeline.objective.baselines.mined import mined_loss
from alm_pipeline.objective.baselines.uld import uld_loss
from alm_pipeline.objective.batch_loss import BatchLosses, Counts, batch_losses
from alm_pipeline.objective.latents import latents_loss
from alm_pipeline.scoring.head import token_and_boundary_logprobs
from alm_pipeline.training.model.live_teacher import LiveTeacher
from storage.errors import UserError

_FROM_SCORES = ("predicted_N", "chunk_of_token_N", "last_token_C", "teacher_logprobs_C")


def micro_batch_losses(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    vocabulary: HeadVocabulary,
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
            sides = _Sides(model, teacher, hidden_NH, teacher.hidden(batch), head, batch)
            live: dict[Term, Tensor] = {
                term: sides.loss(term, counts) for term in objective.terms if term in LIVE_TERMS
            }
            return BatchLosses(losses.terms | live, losses.watched)
    return losses


def _linear(head: Head | LayerHead) -> Head:
    if isinstance(head, LayerHead):
        raise UserError("the baselines need an output layer that is linear, without adapters: leave it out of LoRA")
    return head


@dataclass(frozen=True)
class _Sides:
    """What both sides make of a batch, for the terms that compare more than likelihoods."""

    model: PreTrainedModel
    teacher: LiveTeacher
    hidden_NH: Tensor
    teacher_hidden_MJ: Tensor
    head: Head | LayerHead
    batch: Mapping[str, Tensor]

    def loss(self, term: Term, counts: Counts) -> Tensor:
        losses = {"latents": self._latents, "uld": self._uld, "mined": self._mined, "dskd": self._dskd}
        return losses[term](counts)

    def _latents(self, counts: Counts) -> Tensor:
        student_AH = self.hidden_NH[self.batch["aligned_token_A"]]
        teacher_AJ = self.teacher_hidden_MJ[self.batch["aligned_teacher_token_A"]]
        project = _projections(self.model).get("latents")
        return latents_loss(teacher_AJ, project(student_AH) if project else student_AH, counts.aligned)

    def _uld(self, counts: Counts) -> Tensor:
        return uld_loss(*self._both, *self._predicted, *self._examples, count=counts.tokens)

    def _mined(self, counts: Counts) -> Tensor:
        assert self.teacher.mapping_V is not None
        chosen = self.batch["single_A"]
        teacher_K, student_K = (self.batch[name][chosen] for name in ("aligned_teacher_token_A", "aligned_token_A"))
        return mined_loss(*self._both, teacher_K, student_K, self.teacher.mapping_V, count=counts.single.clamp(min=1))

    def _dskd(self, counts: Counts) -> Tensor:
        projections = _projections(self.model)["dskd"]
        assert isinstance(projections, DskdProjections)
        ids_N, teacher_ids_M = (self.batch[name].flatten() for name in ("token_ids_BS", "teacher_token_ids_BT"))
        heads = self._both[2:]
        embedded = self.teacher.model.get_input_embeddings()(teacher_ids_M), self.model.get_input_embeddings()(ids_N)
        places = (*self._predicted, *self._examples)
        return dskd_loss(projections, *self._both[:2], *embedded, *heads, ids_N, *places, count=counts.tokens)

    @property
    def _both(self) -> tuple[Tensor, Tensor, Head, Head]:
        return self.teacher_hidden_MJ, self.hidden_NH, _linear(self.teacher.head), _linear(self.head)

    @property
    def _predicted(self) -> tuple[Tensor, Tensor]:
        return self.batch["teacher_predicted_M"], self.batch["predicted_N"]

    @property
    def _examples(self) -> tuple[Tensor, Tensor]:
        return self.batch["example_of_teacher_token_M"], self.batch["example_of_token_N"]


_PROJECTIONS = "alm_projections"


def attach_projections(model: PreTrainedModel, projections: nn.ModuleDict) -> None:
    """Make them part of the model while it is trained: optimized, kept in checkpoints, on its device."""
    if len(projections):
        model.add_module(_PROJECTIONS, projections.to(model.device))


def detach_projections(model: PreTrainedModel) -> None:
    if hasattr(model, _PROJECTIONS):
        delattr(model, _PROJECTIONS)


def _projections(model: PreTrainedModel) -> Mapping[str, nn.Module]:
    return dict(getattr(model, _PROJECTIONS, {}))
