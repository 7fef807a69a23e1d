"""How a student's forward pass is computed during training. The settings change results only by rounding."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from alm_pipeline.config import TrainConfig
from alm_pipeline.objective.term_weights import layers
from storage.errors import UserError, cause


@contextmanager
def replaced_forward(model: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Make calls of the model call the function, between the hooks of its wrapper (DDP, FSDP2)."""
    original = model.__dict__.get("forward")
    model.forward = function
    try:
        yield
    finally:
        if original is None:
            del model.forward
        else:
            model.forward = original


@contextmanager
def configured_execution(model: PreTrainedModel, config: TrainConfig) -> Iterator[None]:
    """Use the configured attention, activation checkpointing and compiled layers inside the context."""
    with ExitStack() as stack:
        stack.enter_context(using_attention(model, config.attention))
        if config.activation_checkpointing:
            stack.enter_context(_activation_checkpointing(model))
        if config.compile:
            for layer in layers(model):
                stack.enter_context(replaced_forward(layer, torch.compile(_forward_of(layer))))
        yield


def _forward_of(layer: nn.Module) -> Callable[..., Any]:
    # looked up at each call: sharding changes the layer's class, and only the new class's forward checkpoints
    return lambda *args, **named: type(layer).forward(layer, *args, **named)


@contextmanager
def using_attention(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Use the named attention implementation inside the context. None keeps the model's own."""
    if name is None:
        yield
        return
    original = model.config._attn_implementation
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"train.attention: {name} is not available for {model.config.model_type} here: {cause(error)}: install "
            "what it needs, or leave it out"
        ) from error
    try:
        yield
    finally:
        model.set_attn_implementation(original)


@contextmanager
def _activation_checkpointing(model: PreTrainedModel) -> Iterator[None]:
    # transformers before 5.23 calls it gradient checkpointing
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"train.activation_checkpointing is not available for {model.config.model_type}: {error}"
        ) from error
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
