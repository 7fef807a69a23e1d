"""The metrics of a training step: collected from its micro-batches on all devices, and read once per step."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import Tensor

from alm_pipeline.objective.batch_loss import BatchLosses

_INTEGERS = ("chunks", "tokens")


class StepMetrics:
    """Sums up the metrics of a step. Nothing is read from a device before `collect`."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._micro_batches: list[dict[str, Tensor]] = []

    def add(self, losses: BatchLosses, weights: Mapping[Any, Tensor | float], batch: Mapping[str, Tensor]) -> None:
        """Add a micro-batch."""
        self._micro_batches.append(
            {name: value.detach() for name, value in losses.terms.items()}
            | losses.watched
            | {"tokens": batch["predicted_N"].sum(), "aligned": batch["aligned"], "used": batch["used"]}
            | {"chunks": torch.tensor(len(batch["last_token_C"]))}
            | {f"{term}_weight": torch.as_tensor(weight) for term, weight in weights.items()}
        )

    def collect(self) -> dict[str, float]:
        """Return the step's metrics by column of `metrics.parquet`, and start the next step."""
        names, device = list(self._micro_batches[0]), self._accelerator.device
        rows = [torch.stack([values[name].float().to(device) for name in names]) for values in self._micro_batches]
        sums: Tensor = self._accelerator.reduce(torch.stack(rows).sum(0), "sum")
        self._micro_batches = []
        return metric_columns(dict(zip(names, sums.tolist(), strict=True)), len(rows) * self._accelerator.num_processes)


class StepTimer:
    """Measures the time of a step's own work: waiting for data counts, evaluations and checkpoints do not."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._started = device, time.monotonic()

    def start(self) -> None:
        self._started = time.monotonic()

    def measure(self, tokens: float) -> dict[str, float]:
        """Return the step by column of `speed.parquet`. `tokens` is the number of student tokens on all devices."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        return {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "memory_bytes": memory_bytes(self._device),
        }


def memory_bytes(device: torch.device) -> int:
    """Return the peak memory of tensors on a GPU, or on a CPU the current memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


class ProgressNote:
    """The line that describes a step in the progress display, with the speed over the last 20 steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=20)

    def describe(self, step: Mapping[str, float]) -> str:
        """`step` has a step's metrics and speed by column."""
        self._steps.append((step["tokens"], step["seconds"]))
        tokens, seconds = (sum(values) for values in zip(*self._steps, strict=True))
        memory = step["memory_bytes"] / 2**30
        return (
            f"loss {step['loss']:.3g}, KL {step['kl']:.2e}, lr {step['learning_rate']:.2e}, "
            f"{tokens / seconds:,.0f} tokens/s, {memory:.1f} GiB"
        )


def metric_columns(sums: Mapping[str, float], micro_batches: int) -> dict[str, float]:
    """Turn sums over a step's micro-batches into the columns of `metrics.parquet`: sums, ratios and means."""
    aligned, chunks = max(1, sums["aligned"]), max(1, sums["chunks"])
    ratios = {
        "aligned_chunk_tokens": sums["tokens"] / aligned,
        "chunk_tokens": sums["tokens_in_chunks"] / chunks,
        "used_share": sums["used"] / aligned,
    }
    means = {name: value / micro_batches for name, value in sums.items() if name.endswith("_weight")}
    integers = {name: int(sums[name]) for name in _INTEGERS}
    only_in_ratios = ("aligned", "used", "tokens_in_chunks")
    return {name: value for name, value in sums.items() if name not in only_in_ratios} | ratios | means | integers
