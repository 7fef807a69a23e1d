"""Checks of what the student is trained with: packed rows, patterns of names, terms, and what is saved of it."""

import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from alm_pipeline.config import TrainConfig
from alm_pipeline.models.output_head import output_head
from alm_pipeline.objective.term_weights import last_layer, layers, require_last_layer, uses_gradients
from alm_pipeline.preflight.context import Context
from alm_pipeline.preflight.outline import copied
from alm_pipeline.preflight.small_model import small_model
from alm_pipeline.training.model.adapters import attach_adapters, target_layers
from alm_pipeline.training.model.execution import configured_execution, using_attention
from alm_pipeline.training.model.isolation import check_isolation
from alm_pipeline.training.model.parameters import check_patterns, freeze, freeze_unread_parts, parameter_groups
from alm_pipeline.training.model.projections import attach_projections
from alm_pipeline.training.model.terms import linear_head, make_projections, needs_linear_heads
from alm_pipeline.training.student.save import save_description
from alm_pipeline.transfer.bytes.byte_model import check_architecture, untie

_ON_EVERY_PROCESSOR = (None, "eager", "sdpa")
"""the attentions that a small model can be computed with anywhere, in a moment"""


def packed_rows(context: Context) -> None:
    """Both models' classes keep the examples of a packed row apart, as far as they compute in one."""
    train = context.config.train
    if train.row_tokens == 1 or not train.steps:
        return
    if train.attention in _ON_EVERY_PROCESSOR:
        model = small_model(context.source_config, context.source.name)
        if model is not None:
            with context.noting("train.row_tokens"), using_attention(model, train.attention):
                check_isolation(model, torch.float32)
    if context.config.objective.is_live:
        model = small_model(context.teacher_config, context.teacher.name)
        if model is not None:
            with context.noting("train.row_tokens"):
                check_isolation(model, torch.float32)


def execution(context: Context) -> None:
    """The attention and the activation checkpointing are there for the student's class, on this machine."""
    train = context.config.train
    if not train.steps:
        return
    settings = train.model_copy(update={"compile": False})  # compiling is lazy
    model = copied(context.student_outline)
    with context.noting("train.attention"), configured_execution(model, settings):
        pass
    if train.compile or train.sharding == "fsdp":
        with context.noting("train.compile" if train.compile else "train.sharding"):
            layers(model)


def byte_level_model(context: Context) -> None:
    """The student's class takes n-gram embeddings, if it is to get some."""
    if context.config.student.ngram_embeddings:
        with context.noting("student.ngram_embeddings"):
            check_architecture(context.student_outline)


def trained_parameters(context: Context) -> None:
    """Adapters, frozen parts, learning rates and balanced terms find the parameters that they name."""
    config, objective = context.config.train, context.config.objective
    if not config.steps:
        return
    model = copied(context.student_outline)
    if context.config.student.is_byte_level:
        untie(model)
    if config.lora:
        _check_adapters(context, model, config)
    if objective.is_live:
        teacher = context.teacher_outline
        with torch.device("meta"):
            attach_projections(model, make_projections(teacher, model, objective, config.seed))
    freeze_unread_parts(model)
    _check_frozen(context, model, config)
    for pattern, rate in config.learning_rates.items():
        with context.noting("train.learning_rates"):
            parameter_groups(model, (), 0.0, {pattern: rate})
    if uses_gradients(objective.balance):
        with context.noting("objective.balance"):
            require_last_layer(last_layer(model))


def _check_adapters(context: Context, model: PreTrainedModel, config: TrainConfig) -> None:
    """Attach adapters where every pattern matches, so that later patterns can name them."""
    assert config.lora
    before = len(context.findings)
    for pattern in config.lora.targets:
        with context.noting("train.lora.targets"):
            target_layers(model, config.lora.model_copy(update={"targets": (pattern,)}))
    if len(context.findings) == before:
        with context.noting("train.lora"):
            attach_adapters(model, config.lora, config.seed)


def _check_frozen(context: Context, model: PreTrainedModel, config: TrainConfig) -> None:
    names = [name for name, _ in model.named_parameters()]
    matching = []
    for pattern in config.freeze:
        with context.noting("train.freeze"):
            check_patterns((pattern,), names, "train.freeze")
            matching.append(pattern)
    with context.noting("train.freeze"):
        freeze(model, matching)


def linear_heads(context: Context) -> None:
    """The baselines compute with the rows of both heads."""
    if context.config.train.steps and needs_linear_heads(context.config.objective):
        for field, model in (("teacher", context.teacher_outline), ("student.model", context.student_outline)):
            if getattr(model.config, "quantization_config", None) is None:
                with context.noting(field):
                    linear_head(output_head(model))


def student_can_be_saved(context: Context) -> None:
    """The student's configuration, generation settings and tokenizer can be written."""
    tokenizer = context.student_tokenizer or context.source_tokenizer
    model = copied(context.student_outline)
    with tempfile.TemporaryDirectory() as folder, context.noting("student.model"):
        save_description(model, tokenizer.fast, Path(folder))
