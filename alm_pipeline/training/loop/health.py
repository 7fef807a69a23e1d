"""Detects training that has gone wrong: values that are NaN or infinite, and losses far above the recent mean."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from alm_pipeline.training.parallel.sharding import full_tensor

_MEAN_STEPS = 100
"""the number of steps in the mean"""
_FEWEST_STEPS = 10
_LISTED_EXAMPLES = 100


def diagnose_step(step: Mapping[str, float], history: Sequence[Mapping[str, float]], diverged_at: float | None) -> str:
    """Return what is wrong with a step's log entry, given the entries before it; "" if nothing is wrong."""
    for name in ("loss", "grad_norm"):
        if name in step and not math.isfinite(step[name]):
            return f"the {name} is {step[name]}"
    losses = [entry["loss"] for entry in history[-2 * _MEAN_STEPS :] if "loss" in entry][-_MEAN_STEPS:]
    if diverged_at is None or len(losses) < _FEWEST_STEPS:
        return ""
    mean = math.fsum(losses) / len(losses)
    if step["loss"] <= diverged_at * mean:
        return ""
    return (
        f"the loss is {step['loss']:.4g}, more than {diverged_at:g} times {mean:.4g}, the mean of the last "
        f"{len(losses)} steps (train.diverged_at)"
    )


def stop_message(step: int, problem: str, examples: Sequence[str]) -> str:
    listed = ", ".join(examples[:_LISTED_EXAMPLES])
    more = f" and {len(examples) - _LISTED_EXAMPLES:,} more" if len(examples) > _LISTED_EXAMPLES else ""
    return (
        f"training stopped at step {step}: {problem}. The last checkpoint before it is kept. The step's examples are "
        f"{listed}{more}: check them, and lower train.learning_rate, raise train.warmup_steps, or lower "
        "train.max_grad_norm"
    )


def all_finite(model: nn.Module) -> bool:
    """Return whether all weights are finite. All processes of a sharded model have to call this."""
    finite: list[Tensor] = [full_tensor(value.detach().isfinite().all()) for value in model.parameters()]
    return bool(torch.stack(finite).all())
