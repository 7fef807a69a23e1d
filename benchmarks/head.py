"""The output head against a dense float32 log-softmax: `python -m benchmarks.head [--rounds 5]`.

Both run forward and backward from random hidden states and embeddings: two numbers per position, and the gradients of
both. They take turns, and each measurement has a process of its own. Memory is the peak above what was allocated
before, without the gradient of the embedding, which both must give.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

SHAPES = {"gemma3-270m": (2048, 262144, 640), "smollm2-135m": (4096, 49152, 576)}
DTYPES = ("float32", "bfloat16")
BOUNDARY_SHARE = 0.4


def main() -> None:
    options = arguments()
    if options.measure:
        print(json.dumps(measure(options.measure, options.shape[0], options.dtype[0])))
        return
    for shape in options.shape:
        for dtype in options.dtype:
            compare(shape, dtype, options.rounds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", choices=("dense", "pieces"), help="one measurement, in this process")
    return parser.parse_args()


def compare(shape: str, dtype: str, rounds: int) -> None:
    measured = [(measured_apart("dense", shape, dtype), measured_apart("pieces", shape, dtype)) for _ in range(rounds)]
    positions, vocabulary, _ = SHAPES[shape]
    print(f"{positions:,} × {vocabulary:,} ({shape}), {dtype}")
    for name, unit in (("bytes", 1e6), ("seconds", 1.0), ("cpu_seconds", 1.0)):
        ratios = [pieces[name] / dense[name] for dense, pieces in measured]
        dense_value, pieces_value = (
            median(side[name] for side in sides) / unit for sides in zip(*measured, strict=True)
        )
        print(
            f"  {name:11} dense {dense_value:8,.2f}  pieces {pieces_value:8,.2f}"
            f"  ratio: median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}",
            flush=True,
        )


def measured_apart(method: str, shape: str, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.head", "--measure", method, "--shape", shape, "--dtype", dtype]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"  {shape} {dtype} {method}: {result}", file=sys.stderr, flush=True)
    return result


def measure(method: str, shape: str, dtype: str) -> dict[str, float]:
    """Peak bytes and seconds of one forward and backward pass."""
    positions, vocabulary, width = SHAPES[shape]
    once(method, *inputs(64, 1024, width, dtype))  # starts the threads
    case = inputs(positions, vocabulary, width, dtype)
    before, started, cpu_started = resident_bytes(), time.perf_counter(), time.process_time()
    once(method, *case)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    weight = case[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gradient = weight.numel() * weight.element_size()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": peak - before - gradient}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def inputs(positions: int, vocabulary: int, width: int, dtype: str) -> tuple[Any, ...]:
    """Hidden states, weights, targets, boundary ids; drawn in place, so that the peak is not theirs."""
    import torch  # not at the top: a process's peak counts its parent's memory when it was started

    torch.manual_seed(0)

    def random(*sizes: int, scale: float) -> torch.Tensor:
        return torch.empty(*sizes, dtype=getattr(torch, dtype)).normal_(0, scale).requires_grad_()

    targets = torch.randint(vocabulary, (positions,))
    boundary = torch.randperm(vocabulary)[: int(vocabulary * BOUNDARY_SHARE)].sort().values
    return random(positions, width, scale=1.0), random(vocabulary, width, scale=width**-0.5), targets, boundary


def once(method: str, hidden: Any, weight: Any, targets: Any, boundary: Any) -> None:
    from alm_pipeline.models.output_head import Head
    from alm_pipeline.scoring.head import token_and_boundary_logprobs

    if method == "dense":
        token, share = dense(hidden, weight, targets, boundary)
    else:
        token, share = token_and_boundary_logprobs(hidden, targets, Head(weight), boundary)
    loss: Any = token.mean() + share.mean()
    loss.backward()


def dense(hidden: Any, weight: Any, targets: Any, boundary: Any) -> tuple[Any, Any]:
    logprobs = (hidden @ weight.T).float().log_softmax(-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), logprobs[:, boundary].logsumexp(-1)


if __name__ == "__main__":
    main()
