"""Every way of computing the head against loops in float64; Triton's kernels run under its interpreter.

And the choice between them: what is slow, wrong or fails is not chosen, and a later process remembers the choice.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alm_pipeline.models.output_head import Head
from alm_pipeline.scoring import head as head_module
from alm_pipeline.scoring.backends import choice, halves
from alm_pipeline.scoring.backends.choice import Way
from alm_pipeline.scoring.head import HeadCall, NextTokens, next_token, token_and_boundary_logprobs
from storage.errors import UserError
from tests.alm_pipeline.scoring.oracle import looped, random_case
from tests.alm_pipeline.scoring.test_head import dense_logprobs, numbers_and_gradients

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install triton")
TRITON = pytest.param("triton", marks=needs_triton)


@pytest.mark.parametrize("kind", [TRITON, "torch"])
@given(
    positions=st.integers(1, 6),
    vocabulary=st.integers(1, 9),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    softcap=st.sampled_from([None, 2.0]),
    padding=st.integers(0, 4),
    boundary=st.integers(0, 9),
    piece=st.integers(1, 40),
    entropy=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_number_and_gradient_is_that_of_loops(
    kind: choice.Kind,
    positions: int,
    vocabulary: int,
    bias: bool,
    scale: float,
    softcap: float | None,
    padding: int,
    boundary: int,
    piece: int,
    entropy: bool,
) -> None:
    if kind == "torch":
        scale, softcap, entropy = 1.0, None, False
    rows = max(1, vocabulary - padding)
    hidden, targets, head, ids = random_case(
        positions, vocabulary, bias=bias, scale=scale, softcap=softcap, rows=rows, boundary=min(boundary, vocabulary)
    )
    leaves = [hidden, head.weight_VH, *([head.bias_V] if head.bias_V is not None else [])]

    def expected_numbers() -> head_module.NextTokenNumbers:
        numbers = looped(hidden, targets, head, ids)
        return numbers if entropy else numbers._replace(entropy_N=None)

    call = HeadCall.of(hidden, targets, head, ids, entropy=entropy)
    assert call.problem(kind) == ""
    expected = numbers_and_gradients(expected_numbers, leaves)
    got = numbers_and_gradients(partial(call.numbers_by, Way(kind, piece)), leaves)
    for expected_part, part in zip(expected, got, strict=True):
        torch.testing.assert_close(part, expected_part, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [TRITON, "torch"])
@given(scale=st.sampled_from([1.0, 30.0, 1e3]), boundary=st.sampled_from([[0, 2], [0], [0, 1, 2, 3], [3], []]))
@settings(deadline=None)
def test_gradients_of_extreme_logits_are_those_of_float64(kind: choice.Kind, scale: float, boundary: list[int]) -> None:
    """Also if the boundary set is impossible or certain."""
    generator = torch.Generator().manual_seed(int(scale))
    hidden, weight = torch.randn(4, 4, generator=generator).requires_grad_(), torch.randn(4, 4, generator=generator)
    head, targets, ids = Head((weight * scale).requires_grad_()), torch.arange(4), torch.tensor(boundary).long()
    exact = Head(head.weight_VH.detach().double().requires_grad_())
    exact_hidden = hidden.detach().double().requires_grad_()

    def without_entropy() -> head_module.NextTokenNumbers:
        return looped(exact_hidden, targets, exact, ids)._replace(entropy_N=None)

    expected = numbers_and_gradients(without_entropy, [exact_hidden, exact.weight_VH])
    with choice.using(kind):
        got = numbers_and_gradients(lambda: next_token(hidden, targets, head, ids), [hidden, head.weight_VH])
    tolerance = 1e-6 * max(scale, 10)
    for expected_part, part in zip(expected, got, strict=True):
        assert not part.isnan().any()
        torch.testing.assert_close(part.double(), expected_part, rtol=tolerance, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("kind", [TRITON, "torch"])
@pytest.mark.parametrize("sorted_once", [False, True])
def test_a_vocabulary_of_262144_tokens_in_bfloat16(kind: choice.Kind, sorted_once: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(3, 16, generator=generator).bfloat16()
    weight = (torch.randn(262_144, 16, generator=generator) / 4).bfloat16()
    targets, ids = torch.tensor([0, 262_143, 77_777]), torch.randperm(262_144, generator=generator)[:100_000].sort()[0]
    expected = dense_logprobs(hidden.double(), targets, Head(weight.double()), ids)
    with choice.using(kind):
        if sorted_once:
            got = NextTokens(Head(weight), ids)(hidden, targets)[:2]
        else:
            got = token_and_boundary_logprobs(hidden, targets, Head(weight), ids)
    # logits of up to 6 are off by up to 2^-6 in bfloat16; a sum of 100,000 is not
    torch.testing.assert_close(got[0].double(), expected[0], rtol=0, atol=0.03)
    torch.testing.assert_close(got[1].double(), expected[1], rtol=0, atol=2e-2 if kind == "torch" else 1e-3)
    assert {part.dtype for part in got} == {torch.float32}


@pytest.mark.parametrize("kind", [TRITON, "torch"])
def test_bfloat16_gradients_are_within_a_hundredth_of_their_length(kind: choice.Kind) -> None:
    hidden, targets, head, boundary = random_case(50, 300, bias=True)
    rounded = Head(
        head.weight_VH.detach().bfloat16().requires_grad_(), head.bias_V.detach().bfloat16().requires_grad_()
    )
    leaves = [hidden.detach().bfloat16().requires_grad_(), rounded.weight_VH, rounded.bias_V]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = dense_logprobs(exact[0], targets, Head(*exact[1:]), boundary)
    with choice.using(kind):
        got = token_and_boundary_logprobs(leaves[0], targets, rounded, boundary)
    for exact_grad, grad in zip(
        torch.autograd.grad(torch.stack(expected).sum(), exact),
        torch.autograd.grad(torch.stack(got).sum(), leaves),
        strict=True,
    ):
        assert grad.dtype == torch.bfloat16
        assert torch.linalg.vector_norm(grad.double() - exact_grad) < 0.01 * torch.linalg.vector_norm(exact_grad)


@needs_triton
def test_ligers_loss_gives_both_numbers() -> None:
    """Its fused kernel needs a Hopper GPU; on a processor, the same function computes with torch."""
    pytest.importorskip("liger_kernel", reason="needs liger-kernel: pip install liger-kernel")
    hidden, targets, head, ids = random_case(11, 13, scale=0.5)
    leaves = [hidden.detach().float().requires_grad_(), head.weight_VH.detach().float().requires_grad_()]
    single = Head(leaves[1], None, 0.5)
    order = head_module._Order.of(single, ids)
    got = halves.token_and_boundary(
        halves.LIBRARIES["liger"].loss, leaves[0], single, order.ids_V, order.boundary, order.places_V[targets]
    )
    expected = dense_logprobs(hidden, targets, head, ids)
    for expected_part, part in zip(expected, got, strict=True):
        torch.testing.assert_close(part.double(), expected_part, rtol=1e-5, atol=1e-5)
    expected_grads = torch.autograd.grad(torch.stack(expected).sum(), [hidden, head.weight_VH])
    for exact_grad, grad in zip(expected_grads, torch.autograd.grad(torch.stack(got).sum(), leaves), strict=True):
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings_", "problem"),
    [
        ("torch", {"scale": 0.5}, "no scale"),
        ("torch", {"softcap": 2.0}, "no cap"),
        ("liger", {}, "Hopper"),
        ("torch", {"top": 2}, "likeliest"),
        ("triton", {"top": 2}, "likeliest"),
        ("torch", {"entropy": True}, "no entropy"),
    ],
)
def test_what_a_way_cannot_compute_is_computed_in_pieces(
    kind: choice.Kind, settings_: dict[str, float], problem: str
) -> None:
    asked = {name: settings_[name] for name in ("top", "entropy") if name in settings_}
    hidden, targets, head, ids = random_case(5, 9, **{k: v for k, v in settings_.items() if k not in asked})  # type: ignore[arg-type]
    call = HeadCall.of(hidden, targets, head, ids, **asked)  # type: ignore[arg-type]
    assert problem in call.problem(kind)
    with choice.using(kind):
        assert call._way().kind == "pieces"
        got = next_token(hidden, targets, head, ids, **asked)  # type: ignore[arg-type]
    torch.testing.assert_close(got.boundary_logprobs_N, dense_logprobs(hidden, targets, head, ids)[1])


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path))
    choice._choices.clear()
    yield
    choice._choices.clear()


def numbers(shift: float = 0.0, seconds: float = 0.0) -> tuple[Tensor, Tensor]:
    time.sleep(seconds)
    return torch.full((8,), -2.0 + shift), torch.full((8,), -1.0)


def failing() -> tuple[Tensor, Tensor]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")


@pytest.mark.usefixtures("empty_cache")
def test_the_fastest_right_way_is_chosen_and_remembered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    candidates: dict[Way, Callable[[], tuple[Tensor, Tensor]]] = {
        Way("pieces", 2**24): partial(numbers, seconds=0.02),
        Way("triton", 2**24): partial(numbers, 1e-4, seconds=0.001),
        Way("triton", 2**28): failing,
        Way("torch", 0): partial(numbers, shift=0.3),
        Way("liger", 0): partial(numbers, shift=float("nan")),
    }
    assert choice.choose("a key", candidates, {"other": "not installed"}, 8, torch.bfloat16) == Way("triton", 2**24)
    (line,) = (record.message for record in caplog.records)
    assert line.startswith("output head by triton of 16,777,216 logits (a key): triton of 16,777,216 logits ")
    for reason in (
        "other: not installed",
        "triton of 268,435,456 logits: CUDA out of memory",
        "torch: its token log-probabilities differ by 0.3 nats",
        "liger: its token log-probabilities differ by nan nats",
    ):
        assert reason in line
    choice._choices.clear()  # as in another process
    assert choice.remembered("a key") == Way("triton", 2**24)
    assert choice.remembered("another key") is None


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("gradients", [False, True])
def test_a_measurement_runs_every_way_that_can_and_leaves_no_gradient(
    gradients: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hidden, targets, head, ids = random_case(9, 40, bias=True)
    if not gradients:
        hidden, head = hidden.detach(), Head(head.weight_VH.detach(), head.bias_V.detach())
    call = HeadCall.of(hidden, targets, head, ids)
    way = call._measured_way("a key")
    assert way == choice.remembered("a key")
    (line,) = (record.message for record in caplog.records)
    assert line.count(" ms") == (7 if call.problem("triton") == "" else 4)
    assert "liger: its fused kernel is for Hopper GPUs" in line
    assert hidden.grad is None
    assert head.weight_VH.grad is None


def test_a_name_in_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, targets, head, ids = random_case(5, 9)
    call = HeadCall.of(hidden, targets, head, ids)
    assert call._way().kind == "pieces"
    monkeypatch.setenv("ALM_HEAD", "torch")
    assert call._way().kind == "torch"
    monkeypatch.setenv("ALM_HEAD", "cuda")
    with pytest.raises(UserError, match=r"ALM_HEAD=cuda: not a way .* pieces, triton, torch, liger"):
        call._way()


@needs_triton
def test_the_kernels_compile_for_a_hopper_gpu() -> None:
    """Without a GPU: Triton makes the machine code, which its interpreter does not."""
    script = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from alm_pipeline.scoring.backends import triton_pieces

types = {"outputs": "*bf16", "places": "*i64", "scale": "fp32", "softcap": "fp32"}
for kernel in (triton_pieces._add_kernel, triton_pieces._gradient_kernel):
    names = kernel.arg_names
    types |= {name: "i32" for name in ("stride", "columns", "first")}
    types |= {name: "constexpr" for name in ("capped", "entropy", "block")}
    values = {(names.index(name),): value for name, value in (("capped", True), ("entropy", True), ("block", 1024))}
    source = ASTSource(kernel, {name: types.get(name, "*fp32") for name in names}, constexprs=values)
    print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2


@given(st.integers(0, 2**38))
def test_pieces_take_an_eighth_of_the_free_memory_at_most(free: int) -> None:
    elements = choice.fitting_elements(free)
    assert elements.bit_count() == 1
    assert elements >= choice.PROCESSOR_ELEMENTS
    if elements > choice.PROCESSOR_ELEMENTS:
        assert free / 16 < 16 * elements <= free / 8


def test_on_a_processor_pieces_are_as_asked() -> None:
    assert choice.piece_elements(torch.device("cpu"), 12_345) == 12_345
