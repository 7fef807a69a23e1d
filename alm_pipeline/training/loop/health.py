"""Detects training that has gone wrong: values that are NaN or infinite, and losses far above the recent mean."""

import math
from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alm_pipeline.config import LIVE_TERMS, Term
from alm_pipeline.models.health.finite_weights import first_names, is_finite
from alm_pipeline.training.parallel.sharding import full_tensor

_MEAN_STEPS = 100
"""the number of steps in the mean"""
_FEWEST_STEPS = 10
_LISTED_EXAMPLES = 100
_TERMS = get_args(Term)
_SETTINGS: dict[str, str] = {
    "alm": " (objective.divergence and objective.temperature decide its size)",
    **dict.fromkeys(LIVE_TERMS, " (the teacher's numbers may overflow in score.dtype: use bfloat16 or float32)"),
}
"""what may be wrong besides the settings that `stop_message` names, by column"""


def diagnose_step(step: Mapping[str, float], history: Sequence[Mapping[str, float]], diverged_at: float | None) -> str:
    """Return what is wrong with a step's entry, given the entries before it; "" if nothing is wrong.

    A step's entry has its loss, gradient norm and rates, and the columns of `metrics.parquet`: every term, weight and
    probability. None of them may be NaN or infinite.
    """
    wrong = [name for name, value in step.items() if not math.isfinite(value)]
    if wrong:
        # a term comes before what is computed from it
        name = min(wrong, key=lambda name: (name not in _TERMS, name not in ("loss", "grad_norm")))
        return f"the {'term ' * (name in _TERMS)}{name} is {step[name]}{_SETTINGS.get(name, '')}"
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
        f"{listed}{more}: check them, and lower train.learning_rate, raise train.warmup_steps, lower "
        "train.max_grad_norm, or set train.dtype to float32"
    )


def weights_problem(model: nn.Module) -> str:
    """Return which weights are NaN or infinite; "" if none is. All processes of a sharded model have to call this."""
    flags = {name: _is_finite(value.detach()) for name, value in model.named_parameters()}
    finite = torch.stack(list(flags.values())).tolist()
    wrong = [name for name, is_right in zip(flags, finite, strict=True) if not is_right]
    return f"weights are NaN or infinite: {first_names(wrong)}" if wrong else ""


def _is_finite(value: Tensor) -> Tensor:
    """Return whether all values are finite, as a scalar that all processes of a sharded model have."""
    whole: Tensor = full_tensor(value.isfinite().all()) if isinstance(value, DTensor) else is_finite(value)
    return whole
