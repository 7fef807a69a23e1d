"""The exponential moving average of a model's trained weights, in float32."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from alm_pipeline.training.parallel.processes import this_process
from alm_pipeline.training.parallel.sharding import part_like, whole_tensor

_FILE = "averages.safetensors"


class Averages:
    """Begins as the weights are; frozen ones are left as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._averages = {name: value.detach().float().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after that step, the first being 1.

        The decay rises to its own as (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage and diffusers'
        EMAModel: otherwise the weights before training would still be most of it after 1 / (1 − decay) steps.
        """
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        weights = [value.detach().float() for value in self._weights.values()]
        update(list(self._averages.values()), weights, torch.tensor(step))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages for weights while inside."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages, to the bit and one at a time: no second copy of the model is made."""
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(kept)

    def save(self, checkpoint: Path) -> None:
        """The first process writes them, whole; all have to call it."""
        whole = {name: whole_tensor(average) for name, average in self._averages.items()}
        if this_process().is_first:
            save_file(whole, checkpoint / _FILE)

    def load(self, checkpoint: Path) -> None:
        saved: dict[str, Tensor] = load_file(checkpoint / _FILE)
        for name, average in self._averages.items():
            average.copy_(part_like(average, saved[name]))
