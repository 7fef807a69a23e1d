"""How a student's forward pass is computed while it is trained; its numbers change by no more than rounding."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from alm_pipeline.config import TrainConfig
from alm_pipeline.objective.term_weights import layers
from storage.errors import UserError


@contextmanager
def calls_go_to(model: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """While inside, calling the model calls the function, between the hooks of whatever wraps it (DDP, FSDP2)."""
    before = model.__dict__.get("forward")
    model.forward = function
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


@contextmanager
def computing_as(model: PreTrainedModel, config: TrainConfig) -> Iterator[None]:
    """Attention, activation checkpointing and compiled layers as configured, while inside."""
    with ExitStack() as stack:
        stack.enter_context(attending_with(model, config.attention))
        if config.activation_checkpointing:
            stack.enter_context(_activation_checkpointing(model))
        if config.compile:
            for layer in layers(model):
                stack.enter_context(calls_go_to(layer, torch.compile(_forward_of(layer))))
        yield


def _forward_of(layer: nn.Module) -> Callable[..., Any]:
    # looked up at the call: sharding changes the layer's class, and only the last class's forward checkpoints
    return lambda *args, **named: type(layer).forward(layer, *args, **named)


@contextmanager
def attending_with(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """With the attention of that name while inside; None leaves the model's own."""
    if name is None:
        yield
        return
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"train.attention: {name}: not for {model.config.model_type} here: {error}") from error
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _activation_checkpointing(model: PreTrainedModel) -> Iterator[None]:
    # transformers calls it gradient checkpointing before 5.23
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"train.activation_checkpointing: not for {model.config.model_type}: {error}") from error
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
