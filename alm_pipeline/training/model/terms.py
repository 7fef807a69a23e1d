"""Every loss term in one table, and the losses of a micro-batch.

A new term is a name in `config.objective.Term` (and in `LIVE_TERMS` if it needs the teacher in memory, or in
`TOP_TERMS` if it needs its likeliest tokens), a loss function in `objective`, and an entry in `TERMS`.

Shapes: B rows, S student positions per row, N = B·S, H hidden width; M teacher positions, J the teacher's hidden width,
A aligned chunks, K aligned chunks of one token on both sides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alm_pipeline.config import ObjectiveConfig, Term
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.output_head import Head, LayerHead, hidden_states, output_head
from alm_pipeline.objective.baselines.chunk_places import SidePlaces, predicted_chunks
from alm_pipeline.objective.baselines.dskd import DskdProjections, dskd_loss
from alm_pipeline.objective.baselines.gold import gold_loss
from alm_pipeline.objective.baselines.mined import mined_loss
from alm_pipeline.objective.baselines.simct import simct_loss, span_logits
from alm_pipeline.objective.baselines.uld import uld_loss
from alm_pipeline.objective.batch_loss import BatchLosses, LossCounts, ScoredBatch
from alm_pipeline.objective.bpm import bpm_loss
from alm_pipeline.objective.latents import latents_loss
from alm_pipeline.scoring.head import ListedTokens, NextTokenNumbers, next_token
from alm_pipeline.training.model.live_teacher import LiveTeacher, TokenMapping
from alm_pipeline.training.model.projections import projections_of
from storage.errors import UserError


@dataclass(frozen=True)
class LiveSide:
    """The teacher in memory, and its hidden states of a batch."""

    teacher: LiveTeacher
    hidden_MJ: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """A batch after the forward pass of the student and, where there is one, of the live teacher."""

    columns: Mapping[str, Tensor]
    scored: ScoredBatch
    next_tokens: NextTokenNumbers
    student: PreTrainedModel
    student_head: Head | LayerHead
    student_hidden_NH: Tensor
    live_side: LiveSide | None

    @property
    def live(self) -> LiveSide:
        assert self.live_side, "this term needs the teacher in memory"
        return self.live_side

    @property
    def counts(self) -> LossCounts:
        return self.scored.counts

    @property
    def hidden_and_heads(self) -> tuple[Tensor, Tensor, Head, Head]:
        """(teacher's hidden states, student's hidden states, teacher's head, student's head)"""
        heads = linear_head(self.live.teacher.head), linear_head(self.student_head)
        return self.live.hidden_MJ, self.student_hidden_NH, *heads

    @property
    def predicted(self) -> tuple[Tensor, Tensor]:
        return self.columns["teacher_predicted_M"], self.columns["predicted_N"]

    @property
    def examples(self) -> tuple[Tensor, Tensor]:
        """([M], [N]) the example of each position"""
        return self.columns["example_of_teacher_token_M"], self.columns["example_of_token_N"]


def linear_head(head: Head | LayerHead) -> Head:
    """Return the head. Raises UserError if the baselines can't compute with it."""
    if isinstance(head, LayerHead):
        raise UserError("the baselines need an output layer that is linear, without adapters: leave it out of LoRA")
    return head


def _bpm(batch: MicroBatch) -> Tensor:
    numbers = batch.next_tokens
    assert numbers.listed_logprobs_NL is not None
    assert numbers.unlisted_logprobs_N is not None
    return bpm_loss(
        numbers.listed_logprobs_NL,
        numbers.unlisted_logprobs_N,
        batch.columns["target_probabilities_NL"],
        normalizer_N=numbers.boundary_logprobs_N if batch.scored.objective.given_boundary else None,
        count=batch.counts.targets,
    )


def _latents(batch: MicroBatch) -> Tensor:
    student_AH = batch.student_hidden_NH[batch.columns["aligned_token_A"]]
    teacher_AJ = batch.live.hidden_MJ[batch.columns["aligned_teacher_token_A"]]
    project = projections_of(batch.student).get("latents")
    return latents_loss(teacher_AJ, project(student_AH) if project else student_AH, batch.counts.aligned)


def _latents_projection(teacher_width: int, student_width: int) -> nn.Module | None:
    return None if student_width == teacher_width else nn.Linear(student_width, teacher_width)


def _uld(batch: MicroBatch) -> Tensor:
    return uld_loss(*batch.hidden_and_heads, *batch.predicted, *batch.examples, count=batch.counts.tokens)


def _mined(batch: MicroBatch) -> Tensor:
    mapping_V, single_A = batch.live.teacher.mappings["nearest"], batch.columns["single_A"]
    teacher_K, student_K = (batch.columns[name][single_A] for name in ("aligned_teacher_token_A", "aligned_token_A"))
    return mined_loss(*batch.hidden_and_heads, teacher_K, student_K, mapping_V, count=batch.counts.single.clamp(min=1))


def _dskd(batch: MicroBatch) -> Tensor:
    projections = projections_of(batch.student)["dskd"]
    assert isinstance(projections, DskdProjections)
    ids_N, teacher_ids_M = (batch.columns[name].flatten() for name in ("token_ids_BS", "teacher_token_ids_BT"))
    teacher_hidden_MJ, hidden_NH, teacher_head, head = batch.hidden_and_heads
    teacher_embeddings_MJ: Tensor = batch.live.teacher.model.get_input_embeddings()(teacher_ids_M)
    embeddings_NH: Tensor = batch.student.get_input_embeddings()(ids_N)
    hidden_and_embeddings = (teacher_hidden_MJ, hidden_NH, teacher_embeddings_MJ, embeddings_NH)
    places = (*batch.predicted, *batch.examples)
    count = batch.counts.tokens
    return dskd_loss(projections, *hidden_and_embeddings, teacher_head, head, ids_N, *places, count=count)


@dataclass(frozen=True)
class _ChunkSide:
    """One side of the aligned chunks whose tokens are all predicted on both sides."""

    hidden_NH: Tensor
    head: Head
    token_ids_N: Tensor
    places: SidePlaces


def _chunk_sides(batch: MicroBatch) -> tuple[_ChunkSide, _ChunkSide]:
    """Return the teacher's side and the student's."""
    teacher_hidden_MJ, hidden_NH, teacher_head, head = batch.hidden_and_heads
    columns = batch.columns
    teacher = SidePlaces(columns["aligned_first_teacher_token_A"], columns["aligned_teacher_token_A"])
    student = SidePlaces(columns["aligned_first_token_A"], columns["aligned_token_A"])
    compared_A = predicted_chunks(teacher, student, *batch.predicted)
    teacher_ids_M, ids_N = (columns[name].flatten() for name in ("teacher_token_ids_BT", "token_ids_BS"))
    return (
        _ChunkSide(teacher_hidden_MJ, teacher_head, teacher_ids_M, teacher.of(compared_A)),
        _ChunkSide(hidden_NH, head, ids_N, student.of(compared_A)),
    )


def _gold(batch: MicroBatch) -> Tensor:
    teacher, student = _chunk_sides(batch)
    with torch.no_grad():
        teacher_before_A = _logprobs_before_last(teacher)
    return gold_loss(
        teacher.hidden_NH[teacher.places.last_A - 1],
        student.hidden_NH[student.places.last_A - 1],
        teacher_before_A,
        _logprobs_before_last(student),
        teacher.head,
        student.head,
        batch.live.teacher.mappings["same"],
        count=batch.counts.aligned,
    )


def _logprobs_before_last(side: _ChunkSide) -> Tensor:
    """[A] the log-probability of each chunk's tokens but its last."""
    places = SidePlaces(side.places.first_A, side.places.last_A - 1)
    positions_T, chunk_T = places.tokens()
    none = positions_T[:0]  # no boundary token
    hidden_TH, ids_T = side.hidden_NH[positions_T - 1], side.token_ids_N[positions_T]
    return places.sums(next_token(hidden_TH, ids_T, side.head, none).target_logprobs_N, chunk_T)


def _simct(batch: MicroBatch) -> Tensor:
    teacher, student = sides = _chunk_sides(batch)
    with torch.no_grad():
        teacher_span_A = span_logits(teacher.hidden_NH, teacher.token_ids_N, teacher.places, teacher.head)
    return simct_loss(
        teacher.hidden_NH[teacher.places.first_A - 1],
        student.hidden_NH[student.places.first_A - 1],
        teacher_span_A,
        span_logits(student.hidden_NH, student.token_ids_N, student.places, student.head),
        torch.stack([side.places.last_A > side.places.first_A for side in sides]).any(0),
        teacher.head,
        student.head,
        batch.live.teacher.mappings["same"],
        count=batch.counts.tokens,
    )


def _no_projection(teacher_width: int, student_width: int) -> None:
    return None


@dataclass(frozen=True)
class TermRule:
    """What a term needs, and its loss."""

    loss: Callable[[MicroBatch], Tensor]
    """the scalar of a micro-batch: a sum divided by a count of the global batch"""
    needs_teacher: bool = False
    """the loss needs the teacher in memory while the student is trained"""
    needs_top: bool = False
    """the loss needs the teacher's likeliest tokens among its scores"""
    needs_linear_heads: bool = False
    """the loss computes with the rows of both output layers"""
    mapping: TokenMapping | None = None
    """the teacher's token for each of the student's that the loss needs"""
    projection: Callable[[int, int], nn.Module | None] = _no_projection
    """(teacher's hidden width, student's) to what is trained beside the student"""


TERMS: dict[Term, TermRule] = {
    "alm": TermRule(lambda batch: batch.scored.alm()),
    "bpm": TermRule(_bpm, needs_top=True),
    "sft": TermRule(lambda batch: batch.scored.sft()),
    "latents": TermRule(_latents, needs_teacher=True, projection=_latents_projection),
    "uld": TermRule(_uld, needs_teacher=True, needs_linear_heads=True),
    "mined": TermRule(_mined, needs_teacher=True, needs_linear_heads=True, mapping="nearest"),
    "dskd": TermRule(_dskd, needs_teacher=True, needs_linear_heads=True, projection=DskdProjections),
    "gold": TermRule(_gold, needs_teacher=True, needs_linear_heads=True, mapping="same"),
    "simct": TermRule(_simct, needs_teacher=True, needs_linear_heads=True, mapping="same"),
}


def needed_mappings(objective: ObjectiveConfig) -> set[TokenMapping]:
    """Return which of the teacher's tokens for each of the student's the objective's terms need."""
    return {mapping for term in objective.terms if (mapping := TERMS[term].mapping)}


def needs_linear_heads(objective: ObjectiveConfig) -> bool:
    """Whether a term of the objective computes with the rows of both output layers."""
    return any(TERMS[term].needs_linear_heads for term in objective.terms)


def make_projections(
    teacher: PreTrainedModel, student: PreTrainedModel, objective: ObjectiveConfig, seed: int
) -> nn.ModuleDict:
    """Make what the objective's terms train beside the student, by term; the same for the same seed."""
    projections = nn.ModuleDict()
    widths = [model.config.get_text_config().hidden_size for model in (teacher, student)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for term, rule in TERMS.items():
            projection = rule.projection(*widths) if term in objective.terms else None
            if projection is not None:
                projections[term] = projection
    return projections


def micro_batch_losses(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    vocabulary: HeadVocabulary,
    objective: ObjectiveConfig,
    counts: LossCounts,
    teacher: LiveTeacher | None = None,
) -> BatchLosses:
    """Return the losses of a batch of `BatchStream`; `vocabulary` is the student's.

    Terms that need neither the teacher nor its likeliest tokens are always computed, weighted or not: beside the head
    they cost nothing.
    """
    hidden_BSH = hidden_states(model, batch["token_ids_BS"], batch["position_ids_BS"])
    dtype = _head_dtype(hidden_BSH.device)
    with torch.autocast(hidden_BSH.device.type, enabled=False):
        hidden_NH = hidden_BSH.flatten(0, 1).to(model.dtype)
        head, next_ids_N = output_head(model, rows=vocabulary.rows), batch["token_ids_BS"].flatten().roll(-1)
        boundary_ids_K = vocabulary.boundary_ids_K.to(hidden_NH.device)
        listed = ListedTokens(batch["target_ids_NL"], objective.given_boundary) if objective.needs_top else None
        scoring_head = head if dtype is None else output_head(model, dtype, vocabulary.rows)
        numbers = next_token(hidden_NH, next_ids_N, scoring_head, boundary_ids_K, listed=listed)
        scored = ScoredBatch.of(*numbers[:2], batch, objective, counts)
        live_side = LiveSide(teacher, teacher.hidden(batch)) if teacher else None
        micro_batch = MicroBatch(batch, scored, numbers, model, head, hidden_NH, live_side)
        losses = {term: rule.loss(micro_batch) for term, rule in TERMS.items() if _is_computed(term, rule, objective)}
        return BatchLosses(losses, scored.watched())


def _head_dtype(device: torch.device) -> torch.dtype | None:
    """Return what a head in float32 is rounded to under autocast; None: not at all.

    A GPU has units for products of bfloat16, and returns their sums in float32. A processor is told by the precision of
    its float32 products (`matmul_precision`).
    """
    if device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return None
    return torch.get_autocast_dtype("cuda")


def _is_computed(term: Term, rule: TermRule, objective: ObjectiveConfig) -> bool:
    return term in objective.terms or not (rule.needs_teacher or rule.needs_top)
