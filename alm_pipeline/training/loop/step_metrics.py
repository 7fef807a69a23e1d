"""What a training step is watched for: gathered from its micro-batches on all devices, told once a step."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import Tensor

from alm_pipeline.objective.batch_loss import BatchLosses

_COUNTED = ("chunks", "tokens")


class StepWatch:
    """Nothing is read from a device before `told`."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._micro_batches: list[dict[str, Tensor]] = []

    def add(self, losses: BatchLosses, weights: Mapping[Any, Tensor | float], batch: Mapping[str, Tensor]) -> None:
        """A micro-batch."""
        self._micro_batches.append(
            {name: value.detach() for name, value in losses.terms.items()}
            | losses.watched
            | {"tokens": batch["predicted_N"].sum(), "aligned": batch["aligned"], "used": batch["used"]}
            | {"chunks": torch.tensor(len(batch["last_token_C"]))}
            | {f"{term}_weight": torch.as_tensor(weight) for term, weight in weights.items()}
        )

    def told(self) -> dict[str, float]:
        """The step by column of `metrics.parquet`, and forget it."""
        names, device = list(self._micro_batches[0]), self._accelerator.device
        rows = [torch.stack([each[name].float().to(device) for name in names]) for each in self._micro_batches]
        added: Tensor = self._accelerator.reduce(torch.stack(rows).sum(0), "sum")
        self._micro_batches = []
        return columns(dict(zip(names, added.tolist(), strict=True)), len(rows) * self._accelerator.num_processes)


class Stopwatch:
    """The time of a step's own work, its wait for data among it, without the evaluations and checkpoints between."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._started = device, time.monotonic()

    def start(self) -> None:
        self._started = time.monotonic()

    def told(self, tokens: float) -> dict[str, float]:
        """The step by column of `speed.parquet`; `tokens` are the student's, on all devices."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        return {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "memory_bytes": memory_bytes(self._device),
        }


def memory_bytes(device: torch.device) -> int:
    """The most that tensors took on a GPU so far; elsewhere what this process has in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


class StepNote:
    """What is worth seeing of a step while training goes on, its speed over the last steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=20)

    def of(self, logged: Mapping[str, float]) -> str:
        """In a line; `logged` is a step by column."""
        self._steps.append((logged["tokens"], logged["seconds"]))
        tokens, seconds = (sum(parts) for parts in zip(*self._steps, strict=True))
        memory = logged["memory_bytes"] / 2**30
        return (
            f"loss {logged['loss']:.3g}, KL {logged['kl']:.2e}, lr {logged['learning_rate']:.2e}, "
            f"{tokens / seconds:,.0f} tokens/s, {memory:.1f} GiB"
        )


def columns(sums: Mapping[str, float], micro_batches: int) -> dict[str, float]:
    """Sums over a step's micro-batches as they are, or as the ratios and means that they make."""
    aligned, chunks = max(1, sums["aligned"]), max(1, sums["chunks"])
    ratios = {
        "aligned_chunk_tokens": sums["tokens"] / aligned,
        "chunk_tokens": sums["tokens_in_chunks"] / chunks,
        "used_share": sums["used"] / aligned,
    }
    means = {name: value / micro_batches for name, value in sums.items() if name.endswith("_weight")}
    whole = {name: int(sums[name]) for name in _COUNTED}
    only_in_ratios = ("aligned", "used", "tokens_in_chunks")
    return {name: value for name, value in sums.items() if name not in only_in_ratios} | ratios | means | whole
