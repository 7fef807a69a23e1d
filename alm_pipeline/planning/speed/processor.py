"""How fast this machine multiplies matrices, and so about how fast it runs a model that it has never run."""

import time
from functools import lru_cache

import torch

from alm_pipeline.models.loading import all_devices, default_device

_SIZE = 1024
_SECONDS = 0.2
FORWARD_SHARE = 0.5
"""of the speed of matrix products that scoring reaches; measured with SmolLM2-135M and Gemma 3 270M on two cores"""
TRAINING_SHARE = 0.4
"""the same of a training step"""
_FORWARD_OPERATIONS, _STEP_OPERATIONS = 2, 6
"""multiplications and additions per weight and token"""


def scored_per_second(parameters: int, dtype: str) -> float:
    """Estimate the tokens per second that all devices score with a model of this number of parameters."""
    speed = operations_per_second(dtype) * len(all_devices())
    return FORWARD_SHARE * speed / (_FORWARD_OPERATIONS * parameters)


def trained_per_second(parameters: int, dtype: str, processes: int | None) -> float:
    """Estimate the tokens per second that a model of this number of parameters is trained on."""
    speed = operations_per_second(dtype) * (processes or len(all_devices()))
    return TRAINING_SHARE * speed / (_STEP_OPERATIONS * parameters)


@lru_cache
def operations_per_second(dtype: str) -> float:
    """Measure the multiplications and additions per second of large matrix products on one device."""
    device = default_device()
    left, right = (torch.randn(_SIZE, _SIZE, device=device).to(getattr(torch, dtype)) for _ in range(2))
    _multiply(left, right)
    start, done = time.monotonic(), 0
    while time.monotonic() - start < _SECONDS:
        _multiply(left, right)
        done += 1
    return done * 2 * _SIZE**3 / (time.monotonic() - start)


def _multiply(left: torch.Tensor, right: torch.Tensor) -> None:
    product = left @ right
    product[0, 0].item()  # waits for a GPU
