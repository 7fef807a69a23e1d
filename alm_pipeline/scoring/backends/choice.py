"""Which way of computing the head is the fastest on a GPU: measured once, and remembered by this machine.

Ways differ by rounding only. So that a run that is resumed makes what an unbroken one makes, a machine keeps its choice
(per device, versions, shape and dtype) in its cache folder. The environment variable ALM_HEAD names a way instead.
"""

import hashlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from alm_pipeline.runtime.derived_files import read_derived, write_derived
from storage.errors import UserError, cause

logger = logging.getLogger("alm_pipeline")

Kind = Literal["pieces", "triton", "torch", "liger"]
"""operations of torch, or a Triton kernel, on pieces of the logits; or a library's fused cross-entropy on each half"""
VARIABLE = "ALM_HEAD"

PROCESSOR_ELEMENTS = 2**22
"""logits of a piece: small enough for a processor's cache, and for an allocator to reuse the same memory"""
DEVICE_ELEMENTS = (2**23, 2**25, 2**28)
"""sizes to choose from on a GPU: in its cache, between, and so large that the matrix product is at its best"""
# of the memory that is free, and bytes of a logit with its copies in other dtypes
_MEMORY_SHARE, _LOGIT_BYTES = 1 / 8, 16
MEASURED_POSITIONS = 1024
"""calls with fewer positions measure nothing"""
_ROUNDS = 3
# mean difference in nats from the pieces, by dtype: rounding is below, a kernel that is wrong above
_TOLERANCES = {torch.bfloat16: 0.05, torch.float16: 0.02}
_TOLERANCE = 2e-3


class Way(NamedTuple):
    kind: Kind
    elements: int
    """the logits of a piece; the libraries choose themselves"""

    def __str__(self) -> str:
        return f"{self.kind} of {self.elements:,} logits" if self.kind in ("pieces", "triton") else self.kind


_named: ContextVar[Kind | None] = ContextVar("_named", default=None)
_choices: dict[str, Way] = {}


@contextmanager
def using(kind: Kind) -> Iterator[None]:
    """Compute heads in this way inside the context, wherever it can."""
    before = _named.set(kind)
    try:
        yield
    finally:
        _named.reset(before)


def named_kind() -> Kind | None:
    """Return the way that a context or the environment names. Raises UserError if there is none of this name."""
    if kind := _named.get():
        return kind
    name: Any = os.environ.get(VARIABLE) or None
    if name is not None and name not in get_args(Kind):
        raise UserError(f"{VARIABLE}={name}: not a way to compute the head; there are {', '.join(get_args(Kind))}")
    return name  # type: ignore[no-any-return]


def piece_elements(device: torch.device, elements: int) -> int:
    """Return the logits of a piece: at most `elements`, on a GPU no more than its free memory allows."""
    if device.type != "cuda":
        return elements
    free, _ = torch.cuda.mem_get_info(device)
    # what the allocator holds for the next piece is free too
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(elements, fitting_elements(free + held))


def fitting_elements(free_bytes: int) -> int:
    """Return the logits of a piece for which this memory is plenty; no fewer than those on a processor.

    It is a power of two, so that a little more or less memory changes no sum.
    """
    fitting = int(free_bytes * _MEMORY_SHARE / _LOGIT_BYTES)
    return max(PROCESSOR_ELEMENTS, 1 << max(0, fitting.bit_length() - 1))


def triton_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Return why the Triton kernels can't run; "" if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda":
        return "it computes in float32" if dtype == torch.float64 else ""
    return "" if os.environ.get("TRITON_INTERPRET") == "1" else "it needs a GPU, or TRITON_INTERPRET=1"


def choices() -> Mapping[str, Way]:
    """Return what this process has chosen or read so far, by key."""
    return _choices


def remembered(key: str) -> Way | None:
    """Return the choice that this process, or an earlier one on this machine, made."""
    if key not in _choices and (content := read_derived(_file(key))):
        kind, elements = json.loads(bytes(content))
        _choices[key] = Way(kind, elements)
        logger.info("output head by %s, as measured before on this machine (%s)", _choices[key], key)
    return _choices.get(key)


def choose(
    key: str,
    candidates: Mapping[Way, Callable[[], tuple[Tensor, Tensor]]],
    unable: Mapping[str, str],
    positions: int,
    dtype: torch.dtype,
) -> Way:
    """Return the fastest way, and remember it under the key; the first candidate is what the others are compared with.

    A candidate computes its two numbers, with gradients if they are needed. `unable` is why other ways can't. A
    candidate that fails, or whose numbers differ by more than rounding, is left out; the log has all of it, once.
    """
    (reference, expected_of), *_ = candidates.items()
    expected = expected_of()
    told, seconds = dict(unable), dict[Way, float]()
    for way, compute in candidates.items():
        try:
            if problem := _difference(compute(), expected, _TOLERANCES.get(dtype, _TOLERANCE)):
                told[str(way)] = problem
            else:
                seconds[way] = _fastest(compute)
        except Exception as error:
            told[str(way)] = cause(error)
        _release()
    fastest = min(seconds, key=lambda way: seconds[way]) if seconds else reference
    _choices[key] = fastest
    write_derived(_file(key), json.dumps(fastest).encode())
    times = ", ".join(f"{way} {1e3 * time_:.2f} ms" for way, time_ in sorted(seconds.items(), key=lambda item: item[1]))
    rest = "".join(f"; {name}: {reason}" for name, reason in told.items())
    logger.info("output head by %s (%s): %s for %d positions%s", fastest, key, times, positions, rest)
    return fastest


def _file(key: str) -> str:
    return f"head-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _difference(numbers: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> str:
    """Return how numbers differ from others by more than rounding; "" if they do not."""
    for name, got_N, expected_N in zip(("token", "boundary"), numbers, expected, strict=True):
        difference = float((got_N - expected_N).abs().masked_fill(got_N == expected_N, 0).mean())
        if not difference <= tolerance:
            return f"its {name} log-probabilities differ by {difference:.2g} nats"
    return ""


def _fastest(compute: Callable[[], object]) -> float:
    """Return the seconds of the fastest of some runs; the first run, which compiles, was before."""
    seconds = []
    for _ in range(_ROUNDS):
        _synchronize()
        started = time.perf_counter()
        compute()
        _synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
