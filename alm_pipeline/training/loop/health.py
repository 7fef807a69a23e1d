"""When a training has gone wrong: numbers that are none, and losses far above what they were."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from alm_pipeline.training.parallel.sharding import whole_tensor

_STEPS = 100
"""that a mean is over"""
_FEWEST = 10
_NAMED = 100


def went_wrong(step: Mapping[str, float], before: Sequence[Mapping[str, float]], diverged_at: float | None) -> str:
    """What is wrong with a step's log entry after those before it; nothing where it is empty."""
    for name in ("loss", "grad_norm"):
        if name in step and not math.isfinite(step[name]):
            return f"the {name} is {step[name]}"
    losses = [entry["loss"] for entry in before[-2 * _STEPS :] if "loss" in entry][-_STEPS:]
    if diverged_at is None or len(losses) < _FEWEST:
        return ""
    mean = math.fsum(losses) / len(losses)
    if step["loss"] <= diverged_at * mean:
        return ""
    return (
        f"the loss is {step['loss']:.4g}, more than {diverged_at:g} times {mean:.4g}, the mean of the last "
        f"{len(losses)} steps (train.diverged_at)"
    )


def stopped_message(step: int, wrong: str, examples: Sequence[str]) -> str:
    named = ", ".join(examples[:_NAMED])
    more = f" and {len(examples) - _NAMED:,} more" if len(examples) > _NAMED else ""
    return (
        f"training stopped at step {step}: {wrong}. The last checkpoint before it is kept. The step's examples are "
        f"{named}{more}: look at them, and lower train.learning_rate, lengthen train.warmup_steps, or lower "
        "train.max_grad_norm"
    )


def all_finite(model: nn.Module) -> bool:
    """Of a sharded model, all processes have to ask."""
    found: list[Tensor] = [whole_tensor(value.detach().isfinite().all()) for value in model.parameters()]
    return bool(torch.stack(found).all())
