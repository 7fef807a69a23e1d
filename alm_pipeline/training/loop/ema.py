"""The exponential moving average (EMA) of a model's trained weights, in float32."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from alm_pipeline.training.parallel.processes import this_process
from alm_pipeline.training.parallel.sharding import distribute_like, full_tensor

_FILE = "averages.safetensors"


class EmaWeights:
    """The average of the trained weights, initially equal to them. Frozen weights are not averaged."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._averages = {name: value.detach().float().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after a step to the average. The first step is 1.

        The decay rises to its final value as (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage and
        diffusers' EMAModel. Otherwise the initial weights would still dominate the average after 1 / (1 − decay) steps.
        """
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        weights = [value.detach().float() for value in self._weights.values()]
        update(list(self._averages.values()), weights, torch.tensor(step))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averages as its weights inside the context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages exactly, one tensor at a time, so no second copy of the model is made."""
        for name, weight in self._weights.items():
            value = weight.detach().clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(value)

    def save(self, checkpoint: Path) -> None:
        """Write the full averages in the first process. All processes have to call this."""
        averages = {name: full_tensor(average) for name, average in self._averages.items()}
        if this_process().is_first:
            save_file(averages, checkpoint / _FILE)

    def load(self, checkpoint: Path) -> None:
        saved: dict[str, Tensor] = load_file(checkpoint / _FILE)
        for name, average in self._averages.items():
            average.copy_(distribute_like(average, saved[name]))
