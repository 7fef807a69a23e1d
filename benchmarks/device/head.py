"""The head: its numbers against float64, and its speed against other losses of the same positions."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from alm_pipeline.models.output_head import Head
from alm_pipeline.scoring.backends import choice
from alm_pipeline.scoring.backends.choice import Way
from alm_pipeline.scoring.head import HeadCall, NextTokens, token_and_boundary_logprobs
from benchmarks.device import SMALL
from benchmarks.device.measuring import SIZES, Line, Lines, device, failed, peak_bytes, seconds
from benchmarks.device.models import BOUNDARY_SHARE

KINDS: tuple[choice.Kind, ...] = ("pieces", "triton", "torch", "liger")


class HeadCase(NamedTuple):
    hidden_NH: Tensor
    targets_N: Tensor
    head: Head
    boundary_ids_K: Tensor

    @classmethod
    def random(cls, positions: int, vocabulary: int, width: int, dtype: torch.dtype, **settings: Any) -> "HeadCase":
        """On the device; large ones are drawn there."""
        generator = torch.Generator(device()).manual_seed(0)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(*shape, generator=generator, device=device(), dtype=torch.float32)
            return (values * scale).to(dtype).requires_grad_()

        bias_V = draw(vocabulary) if settings.pop("bias", False) else None
        ids_V = torch.randperm(vocabulary, generator=generator, device=device())
        boundary_ids_K = ids_V[: int(vocabulary * settings.pop("boundary", BOUNDARY_SHARE))].sort().values
        targets_N = torch.randint(vocabulary, (positions,), generator=generator, device=device())
        head = Head(draw(vocabulary, width, scale=2 * width**-0.5), bias_V, **settings)
        return cls(draw(positions, width), targets_N, head, boundary_ids_K)

    def call(self, *, entropy: bool = False) -> HeadCall:
        return HeadCall.of(*self, entropy=entropy)

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden_NH, self.head.weight_VH, self.head.bias_V) if leaf is not None]


def exact_numbers(case: HeadCase, *, entropy: bool) -> list[Tensor]:
    """The numbers, and the gradients of their sum, in float64 on the processor."""
    hidden, weight, *bias = (leaf.detach().cpu().double().requires_grad_() for leaf in case.leaves())
    head = case.head
    logits = (hidden @ weight.T + (bias[0] if bias else 0)) * head.scale
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    logprobs = logits.log_softmax(-1)
    numbers = [
        logprobs.gather(-1, case.targets_N.cpu()[:, None]).squeeze(-1),
        logprobs[:, case.boundary_ids_K.cpu()].logsumexp(-1),
        *([-(logprobs.exp() * logprobs).sum(-1)] if entropy else []),
    ]
    return [*numbers, *torch.autograd.grad(finite_sum(numbers), [hidden, weight, *bias])]


def finite_sum(numbers: list[Tensor]) -> Tensor:
    return torch.stack([number.where(number.isfinite(), 0).sum() for number in numbers]).sum()


def head_correctness() -> Lines:
    small = (8, 100, 16) if SMALL else (64, 5003, 256)
    large = (2, 1000, 8) if SMALL else (16, 262_144, 64)
    cases: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
        "plain": (small, {}),
        "bias, scale, soft cap": (small, {"bias": True, "scale": 0.5, "softcap": 20.0}),
        "no boundary token": (small, {"boundary": 0.0}),
        "only boundary tokens": (small, {"boundary": 1.0}),
        f"{large[1]:,} tokens": (large, {}),
    }
    for kind, dtype, entropy in itertools.product(KINDS, (torch.float32, torch.bfloat16), (False, True)):
        largest = dict[str, Line]()
        for name, (shape, settings) in cases.items():
            case = HeadCase.random(*shape, dtype, **settings)
            call = case.call(entropy=entropy)
            if not call.problem(kind):
                for quantity, line in compared_numbers(name, case, call, Way(kind, 4096)).items():
                    # NaN is not less than anything
                    if not (quantity in largest and float(line.value) < float(largest[quantity].value)):
                        largest[quantity] = line
        label = f"{kind}{' with entropy' if entropy else ''}, {str(dtype).removeprefix('torch.')}"
        yield from (line._replace(what=f"{label}: {line.what}") for line in largest.values())


def compared_numbers(name: str, case: HeadCase, call: HeadCall, way: Way) -> dict[str, Line]:
    """The largest error of the numbers, and of their gradients."""
    is_exact, expected = case.head.dtype == torch.float32, exact_numbers(case, entropy=call.entropy)
    try:
        numbers = [number for number in call.numbers_by(way)[:3] if number is not None]
        found = [*numbers, *torch.autograd.grad(finite_sum(numbers), case.leaves())]
    except Exception as error:
        return {"": Line(f"{name}: {failed(error)}", math.nan, limit=0)}
    pairs = [(got.detach().cpu().double(), exact.detach()) for got, exact in zip(found, expected, strict=True)]
    errors = [(got - exact).where(got != exact, 0) for got, exact in pairs]  # two infinite numbers are equal
    largest = max(float(error.abs().max()) for error in errors[: len(numbers)])
    lengths = [max(float(exact.norm()), 1e-12) for _, exact in pairs[len(numbers) :]]
    gradient = max(float(error.norm()) / n for error, n in zip(errors[len(numbers) :], lengths, strict=True))
    # of logits of up to 9: in bfloat16 off by up to 2^-5 where a way rounds them
    return {
        "numbers": Line(f"largest error ({name})", largest, "nats", 1e-4 if is_exact else 0.1),
        "gradients": Line(f"error of gradients ({name})", gradient, "of their length", 1e-3 if is_exact else 0.02),
    }


class Rival(NamedTuple):
    """Somebody else's loss of the same positions: the mean negative log-likelihood."""

    name: str
    loss: Callable[[HeadCase], Tensor]


def dense_loss(case: HeadCase) -> Tensor:
    return F.cross_entropy(F.linear(case.hidden_NH, case.head.weight_VH).float(), case.targets_N)


def torch_loss(case: HeadCase) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(case.hidden_NH, case.head.weight_VH, case.targets_N, options=options)


def liger_loss(case: HeadCase) -> Tensor:
    module: Any = import_module("liger_kernel.ops.fused_linear_cross_entropy")
    function = module.LigerFusedLinearCrossEntropyFunction
    result = function.apply(case.hidden_NH, case.head.weight_VH, case.targets_N)
    loss: Tensor = result[0] if isinstance(result, tuple) else result
    return loss


def liger_scaled_loss(case: HeadCase) -> Tensor:
    module: Any = import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    losses_N: Tensor = module.LigerFusedLinearScaledCrossEntropyFunction.apply(
        case.hidden_NH, case.head.weight_VH, case.targets_N
    )
    return losses_N.mean()


def cce_loss(case: HeadCase) -> Tensor:
    module: Any = import_module("cut_cross_entropy")
    loss: Tensor = module.linear_cross_entropy(case.hidden_NH, case.head.weight_VH, case.targets_N)
    return loss


RIVALS = (
    Rival("dense cross-entropy", dense_loss),
    Rival("torch linear_cross_entropy", torch_loss),
    Rival("liger fused cross-entropy", liger_loss),
    Rival("liger scaled cross-entropy", liger_scaled_loss),
    Rival("cut-cross-entropy", cce_loss),
)


def head_speed() -> Lines:
    for name, shape in SIZES.heads.items():
        case = HeadCase.random(*shape, torch.bfloat16)
        products = 2.0 * math.prod(shape)
        label = f"{name}, {shape[0]:,} × {shape[1]:,}, width {shape[2]:,}"
        for rival in RIVALS:
            yield from timed_head(f"{label}: {rival.name}", case, partial(rival.loss, case), products)
        call = case.call()
        for kind in KINDS:
            if problem := call.problem(kind):
                yield Line(f"{label}: two numbers by {kind}", problem)
                continue
            for elements in choice.DEVICE_ELEMENTS[: 1 if SMALL else None] if kind in ("pieces", "triton") else (0,):
                way = Way(kind, elements)
                yield from timed_head(f"{label}: two numbers by {way}", case, partial(mean_of, call, way), products)
        chosen = partial(chosen_numbers, case)
        yield from timed_head(f"{label}: two numbers, as chosen", case, chosen, products)
        vocabulary = f"{shape[1]:,} × {shape[2]:,}"
        for key, way in choice.choices().items():
            if vocabulary in key:
                yield Line(f"{label}: chosen, {key.rpartition(', ')[2]}", str(way))
        with torch.no_grad():
            sorted_once = NextTokens(case.head, case.boundary_ids_K)
            run = partial(sorted_once, case.hidden_NH, case.targets_N)
            yield Line(f"{label}: sorted once, forward", products / seconds(run) / 1e12, "TFLOP/s")
        del case, call, sorted_once, run, chosen


def mean_of(call: HeadCall, way: Way) -> Tensor:
    numbers = call.numbers_by(way)
    return numbers.target_logprobs_N.mean() + numbers.boundary_logprobs_N.mean()


def chosen_numbers(case: HeadCase) -> Tensor:
    token_N, boundary_N = token_and_boundary_logprobs(*case)
    return token_N.mean() + boundary_N.mean()


def timed_head(label: str, case: HeadCase, loss: Callable[[], Tensor], products: float) -> Lines:
    """The rate of the products that are needed: one forward, two backward; and peak memory of both together."""

    def forward() -> None:
        with torch.no_grad():
            loss()

    def both() -> None:
        torch.autograd.grad(loss(), case.leaves())

    try:
        peak = peak_bytes(both)
        yield Line(f"{label}: forward", products / seconds(forward, 3) / 1e12, "TFLOP/s")
        yield Line(f"{label}: forward and backward", 3 * products / seconds(both, 3) / 1e12, "TFLOP/s")
        yield Line(f"{label}: peak memory", peak / 1e9, "GB")
    except Exception as error:
        yield Line(label, failed(error))
    if device().type == "cuda":
        torch.cuda.empty_cache()
