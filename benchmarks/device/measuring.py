"""Lines of the table, how large everything is, and times and memory of the device."""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

from benchmarks.device import SMALL

# bfloat16 without sparsity, in floating-point operations a second, by what the device's name holds
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


class Line(NamedTuple):
    """One line of the table."""

    what: str
    value: float | str
    unit: str = ""
    limit: float | None = None
    """the value is right if it is at most this; None: there is no right and wrong"""

    @property
    def is_wrong(self) -> bool:
        return self.limit is not None and not (isinstance(self.value, float | int) and self.value <= self.limit)


Lines = Iterator[Line]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    heads: dict[str, tuple[int, int, int]]
    """positions, vocabulary, hidden width"""
    layers: int
    width: int
    vocabulary: int
    lengths: tuple[int, int]
    """the shortest and longest text, in tokens"""
    texts: int
    row_tokens: int
    batch_tokens: int
    steps: int
    attention: tuple[int, int, int, int]
    """rows, heads, tokens, width of a head"""


GPU_SIZES = Sizes(
    heads={
        "as liger's own figure": (8192, 131_072, 4096),
        "Gemma 3 4B": (16_384, 262_144, 2560),
        "Llama 3 1B": (16_384, 128_256, 2048),
    },
    layers=16,
    width=2048,
    vocabulary=128_256,
    lengths=(64, 2048),
    texts=512,
    row_tokens=2048,
    batch_tokens=16_384,
    steps=6,
    attention=(8, 32, 4096, 64),
)
SMALL_SIZES = Sizes(
    heads={"small": (16, 1000, 32)},
    layers=2,
    width=64,
    vocabulary=512,
    lengths=(4, 48),
    texts=24,
    row_tokens=64,
    batch_tokens=128,
    steps=2,
    attention=(1, 2, 32, 8),
)
SIZES = SMALL_SIZES if SMALL else GPU_SIZES


@cache
def device() -> torch.device:
    """Only in a section's process: after CUDA is touched, no process can be forked."""
    if SMALL:
        return torch.device("cpu")
    assert torch.cuda.is_available(), "no GPU: --small runs on a processor"
    return torch.device("cuda")


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], rounds: int = 5, warm: int = 1) -> float:
    """The median of some runs."""
    for _ in range(warm):
        run()
    taken = []
    for _ in range(2 if SMALL else rounds):
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory above what was allocated before; 0 on a processor."""
    if device().type != "cuda":
        run()
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


@cache
def peak_flops() -> float:
    """Of products in bfloat16: as published, or as measured where the device is unknown."""
    name = torch.cuda.get_device_name() if device().type == "cuda" else ""
    return next((peak for kind, peak in PEAKS.items() if kind in name), 0.0) or measured_flops()


@cache
def measured_flops() -> float:
    size = 128 if SMALL else 8192
    factor = torch.randn(size, size, device=device(), dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: factor @ factor, rounds=10, warm=3)


def failed(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def environment() -> Lines:
    is_gpu = device().type == "cuda"
    yield Line("device", torch.cuda.get_device_name() if is_gpu else "processor")
    yield Line("python", sys.version.split()[0])
    for name in ("torch", "triton", "transformers", "liger-kernel", "nvidia-cutlass-dsl", "cut-cross-entropy"):
        yield Line(name, installed(name))
    yield Line("product in bfloat16, measured", measured_flops() / 1e12, "TFLOP/s")
    ones = torch.ones(16, 16, device=device(), dtype=torch.bfloat16)
    with contextlib.suppress(RuntimeError, TypeError):
        yield Line("returns sums of bfloat16 products as", str(torch.mm(ones, ones, out_dtype=torch.float32).dtype))
    if is_gpu:
        values = torch.empty(2**30, dtype=torch.uint8, device=device())
        target = torch.empty_like(values)
        yield Line(
            "copying, read and written", 2 * values.numel() / seconds(lambda: target.copy_(values)) / 1e12, "TB/s"
        )
