"""The metrics of a training step: collected from its micro-batches on all devices, and read once per step."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from alm_pipeline.objective.batch_loss import BatchLosses, source_kl

_INTEGERS = ("chunks", "tokens")
SOURCE_COUNTS = ("examples", "tokens", "chunks")
"""what is counted of each source of a mixture, under `NAME/examples` and so on; its divergence is `NAME/kl`"""


class StepMetrics:
    """Sums up the metrics of a step. Nothing is read from a device before `collect`."""

    def __init__(self, accelerator: Any, sources: Sequence[str] = ()) -> None:
        """`sources` are the names of a mixture's."""
        self._accelerator, self._sources = accelerator, sources
        self._micro_batches: list[dict[str, Tensor]] = []

    def add(self, losses: BatchLosses, weights: Mapping[Any, Tensor | float], batch: Mapping[str, Tensor]) -> None:
        """Add a micro-batch."""
        self._micro_batches.append(
            {name: value.detach() for name, value in losses.terms.items()}
            | losses.watched
            | {"tokens": batch["predicted_N"].sum(), "aligned": batch["aligned"], "used": batch["used"]}
            | {"chunks": torch.tensor(len(batch["last_token_C"]))}
            | {f"{term}_weight": torch.as_tensor(weight) for term, weight in weights.items()}
            | (_source_counts(batch) if self._sources else {})
        )

    def collect(self) -> dict[str, float]:
        """Return the step's metrics by column of `metrics.parquet`, and start the next step."""
        names, device = list(self._micro_batches[0]), self._accelerator.device
        rows = [torch.stack([values[name].float().to(device) for name in names]) for values in self._micro_batches]
        sums: Tensor = self._accelerator.reduce(torch.stack(rows).sum(0), "sum")
        self._micro_batches = []
        sums_by_name = dict(zip(names, sums.tolist(), strict=True))
        by_source = _by_source(sums_by_name, self._sources)
        rest = {name: value for name, value in sums_by_name.items() if not name.startswith(_SOURCE)}
        return metric_columns(rest, len(rows) * self._accelerator.num_processes) | by_source


_SOURCE = "source "


def _source_counts(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    examples_K, tokens_K = batch["source_examples_K"], batch["source_tokens_K"]
    chunks_K = torch.bincount(batch["source_C"], minlength=len(examples_K))
    counts = {"examples": examples_K, "tokens": tokens_K, "chunks": chunks_K}
    return {
        f"{_SOURCE}{number} {name}": count
        for name, counts_K in counts.items()
        for number, count in enumerate(counts_K.unbind())
    }


def _by_source(sums: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Return each source's counts and its mean divergence per chunk, if it has chunks in the step."""
    found: dict[str, float] = {}
    for number, name in enumerate(names):
        counts = {of: int(sums[f"{_SOURCE}{number} {of}"]) for of in SOURCE_COUNTS}
        found |= {f"{name}/{of}": count for of, count in counts.items()}
        if counts["chunks"]:
            found[f"{name}/kl"] = sums[source_kl(number)] / counts["chunks"]
    return found


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
