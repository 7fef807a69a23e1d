"""The head in pieces, checked against a dense float64 log-softmax."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.models.output_head import Head, LayerHead
from alm_pipeline.scoring import head as head_module
from alm_pipeline.scoring.backends.sums import VocabularyOrder
from alm_pipeline.scoring.head import (
    ListedTokens,
    NextTokenNumbers,
    NextTokens,
    next_token,
    token_and_boundary_logprobs,
)
from tests.alm_pipeline.scoring.oracle import looped, looped_listed, random_case, random_listed


def dense_logprobs(hidden: Tensor, targets: Tensor, head: Head, boundary: Tensor) -> tuple[Tensor, Tensor]:
    """The oracle: every logit at once."""
    logits = hidden @ head.weight_VH.T * head.scale
    if head.bias_V is not None:
        logits = (hidden @ head.weight_VH.T + head.bias_V) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logprobs = torch.log_softmax(logits, -1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), logprobs[:, boundary].logsumexp(-1)


@pytest.fixture(params=[7, 64, 2**24])
def piece_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one position, of a few, and all at once."""
    monkeypatch.setattr(head_module, "_PIECE_ELEMENTS", request.param)


@pytest.mark.usefixtures("piece_elements")
@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"scale": 0.25}, {"softcap": 3.0}, {"bias": True, "scale": 2.0, "softcap": 2.0}]
)
def test_values_and_gradients_are_those_of_a_dense_log_softmax(options: dict[str, float]) -> None:
    hidden, targets, head, boundary = random_case(11, 13, **options)  # type: ignore[arg-type]
    leaves = [hidden, head.weight_VH, *([head.bias_V] if head.bias_V is not None else [])]
    weights = torch.randn(2, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    results = []
    for function in (dense_logprobs, token_and_boundary_logprobs):
        values = function(hidden, targets, head, boundary)
        loss = (torch.stack(values) * weights).sum()
        results.append([*values, *torch.autograd.grad(loss, leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def as_layer(head: Head) -> LayerHead:
    """The same head on the path for layers that are not linear."""
    layer = torch.nn.Linear(*head.weight_VH.T.shape, bias=head.bias_V is not None, device="meta")
    parameters = {"weight": head.weight_VH, **({} if head.bias_V is None else {"bias": head.bias_V})}
    return LayerHead(layer, parameters, head.vocabulary, head.scale, head.softcap)


def numbers_and_gradients(function: Callable[[], NextTokenNumbers], leaves: list[Tensor]) -> list[Tensor]:
    numbers = function()
    parts = [part for part in numbers[:3] if part is not None]
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(len(part), dtype=torch.float64, generator=generator) for part in parts]
    # an impossible outcome has no gradient, and would make the sum infinite
    loss = sum(
        (torch.where(part > -torch.inf, part, 0) * weight).sum() for part, weight in zip(parts, weights, strict=True)
    )
    return [*parts, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


@pytest.mark.parametrize("through", [lambda head: head, as_layer], ids=["pieces", "layer"])
@given(
    positions=st.integers(0, 6),
    vocabulary=st.integers(1, 9),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    softcap=st.sampled_from([None, 2.0]),
    padding=st.integers(0, 4),
    boundary=st.integers(0, 9),
    piece=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_every_number_and_gradient_is_that_of_loops(
    through: Callable[[Head], Head | LayerHead],
    positions: int,
    vocabulary: int,
    bias: bool,
    scale: float,
    softcap: float | None,
    padding: int,
    boundary: int,
    piece: int,
) -> None:
    rows = max(1, vocabulary - padding)
    hidden, targets, head, ids = random_case(
        positions, vocabulary, bias=bias, scale=scale, softcap=softcap, rows=rows, boundary=min(boundary, vocabulary)
    )
    leaves = [hidden, head.weight_VH, *([head.bias_V] if head.bias_V is not None else [])]
    expected = numbers_and_gradients(lambda: looped(hidden, targets, head, ids), leaves)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_PIECE_ELEMENTS", piece)
        patch.setattr(head_module, "_LAYER_PIECE_ELEMENTS", piece)
        got = numbers_and_gradients(lambda: next_token(hidden, targets, through(head), ids, entropy=True), leaves)
    for expected_part, part in zip(expected, got, strict=True):
        torch.testing.assert_close(part, expected_part, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("through", [lambda head: head, as_layer], ids=["pieces", "layer"])
@given(
    vocabulary=st.integers(1, 300),
    bias=st.booleans(),
    padding=st.integers(0, 4),
    boundary=st.integers(0, 300),
    piece=st.sampled_from([7, 900, 3000]),
    top=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_a_head_for_many_calls_gives_the_same_numbers(
    through: Callable[[Head], Head | LayerHead],
    vocabulary: int,
    bias: bool,
    padding: int,
    boundary: int,
    piece: int,
    top: int,
) -> None:
    rows = max(1, vocabulary - padding)
    hidden, targets, head, ids = random_case(7, vocabulary, bias=bias, rows=rows, boundary=min(boundary, vocabulary))
    next_tokens = NextTokens(through(head), ids)
    expected = next_token(hidden, targets, through(head), ids, entropy=True, top=top)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_PIECE_ELEMENTS", piece)
        got = next_tokens(hidden, targets, entropy=True, top=top)
    for expected_part, part in zip(expected, got, strict=True):
        torch.testing.assert_close(part, expected_part)
    if isinstance(next_tokens.head, Head):
        order = VocabularyOrder.of(next_tokens.head, next_tokens.boundary_ids_K)
        assert order.rows(slice(0, 1)) == slice(0, 1)  # it gathers nothing


@pytest.mark.usefixtures("piece_elements")
@pytest.mark.parametrize("through", [lambda head: head, as_layer], ids=["pieces", "layer"])
@pytest.mark.parametrize("top", [1, 4, 99])
def test_the_likeliest_tokens(top: int, through: Callable[[Head], Head | LayerHead]) -> None:
    hidden, targets, head, ids = random_case(11, 13, rows=12)
    expected, got = looped(hidden, targets, head, ids, top), next_token(hidden, targets, through(head), ids, top=top)
    torch.testing.assert_close(got.top_logprobs_NR, expected.top_logprobs_NR)
    torch.testing.assert_close(got.top_ids_NR, expected.top_ids_NR)
    assert not got.top_logprobs_NR.requires_grad
    assert got.entropy_N is None


def finite_sum(parts: list[Tensor]) -> Tensor:
    """A different weight for every finite number."""
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(part.shape, dtype=torch.float64, generator=generator) for part in parts]
    finite = [part.where(part > -torch.inf, 0) for part in parts]
    return torch.stack([(part * weight).sum() for part, weight in zip(finite, weights, strict=True)]).sum()


@pytest.mark.parametrize("through", [lambda head: head, as_layer], ids=["pieces", "layer"])
@given(
    positions=st.integers(0, 5),
    vocabulary=st.integers(1, 9),
    padding=st.integers(0, 3),
    boundary=st.integers(0, 9),
    width=st.integers(1, 10),
    piece=st.integers(1, 40),
    softcap=st.sampled_from([None, 2.0]),
    entropy=st.booleans(),
    given_boundary=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_listed_tokens_and_the_rest_are_those_of_loops(
    through: Callable[[Head], Head | LayerHead],
    positions: int,
    vocabulary: int,
    padding: int,
    boundary: int,
    width: int,
    piece: int,
    softcap: float | None,
    entropy: bool,
    given_boundary: bool,
) -> None:
    rows, boundary = max(1, vocabulary - padding), min(boundary, vocabulary)
    hidden, targets, head, ids = random_case(
        positions, vocabulary, bias=True, scale=0.5, softcap=softcap, rows=rows, boundary=boundary
    )
    listed = random_listed(positions, vocabulary, width, ids if given_boundary else None)
    leaves = [hidden, head.weight_VH, head.bias_V]
    numbers, found = [*looped(hidden, targets, head, ids)[:2]], looped_listed(hidden, head, ids, listed)
    expected = [*found, *torch.autograd.grad(finite_sum([*numbers, *found]), leaves, materialize_grads=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_PIECE_ELEMENTS", piece)
        patch.setattr(head_module, "_LAYER_PIECE_ELEMENTS", piece)
        got = next_token(hidden, targets, through(head), ids, entropy=entropy, listed=listed)
    assert got.listed_logprobs_NL is not None
    assert got.unlisted_logprobs_N is not None
    parts = [got.listed_logprobs_NL, got.unlisted_logprobs_N]
    gradients = torch.autograd.grad(finite_sum([*got[:2], *parts]), leaves, materialize_grads=True)
    for expected_part, part in zip(expected, [*parts, *gradients], strict=True):
        torch.testing.assert_close(part, expected_part, rtol=1e-9, atol=1e-9)


def test_a_rest_is_exact_however_small_it_is() -> None:
    """One minus the listed probabilities would be lost in float32."""
    weight = torch.tensor([[40.0], [10.0], [-1.0], [-60.0]], requires_grad=True)
    hidden = torch.ones(1, 1, requires_grad=True)
    for ids, rest in (([0, -1], [1, 2, 3]), ([0, 1], [2, 3]), ([1, 0], [2, 3])):
        listed = ListedTokens(torch.tensor([ids]))
        numbers = next_token(hidden, torch.zeros(1, dtype=torch.int64), Head(weight), torch.tensor([1]), listed=listed)
        exact = torch.log_softmax(weight.double().squeeze(-1), 0)[rest].logsumexp(0)
        assert numbers.unlisted_logprobs_N is not None
        torch.testing.assert_close(numbers.unlisted_logprobs_N.double(), exact[None], rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(numbers.unlisted_logprobs_N.sum(), weight)
        (expected,) = torch.autograd.grad(exact, weight)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_equal_logits_have_equal_probability() -> None:
    hidden, weight = torch.ones(3, 2, requires_grad=True), torch.ones(8, 2, requires_grad=True)
    numbers = next_token(hidden, torch.arange(3), Head(weight), torch.arange(4), entropy=True, top=2)
    torch.testing.assert_close(numbers.target_logprobs_N.exp(), torch.full((3,), 1 / 8))
    torch.testing.assert_close(numbers.boundary_logprobs_N.exp(), torch.full((3,), 1 / 2))
    torch.testing.assert_close(numbers.entropy_N.exp(), torch.full((3,), 8.0))
    torch.stack([part.sum() for part in numbers[:3]]).sum().backward()
    torch.testing.assert_close(hidden.grad, torch.zeros(3, 2), rtol=0, atol=1e-6)


def test_padding_has_no_probability_and_no_gradient() -> None:
    hidden, _, head, _ = random_case(5, 20, rows=15, bias=True)
    targets, boundary = torch.tensor([0, 14, 15, 19, 3]), torch.arange(15, 20)
    for padded in (head, as_layer(head)):
        token, share = token_and_boundary_logprobs(hidden, targets, padded, boundary)
        assert (token > -torch.inf).tolist() == [True, True, False, False, True]
        assert (share == -torch.inf).all()
        for leaf in torch.autograd.grad(token[:2].sum() + share.sum(), [head.weight_VH, head.bias_V]):
            assert torch.isfinite(leaf).all()
            assert not leaf[15:].any()


def test_gradcheck() -> None:
    hidden, targets, head, boundary = random_case(4, 5, softcap=4.0)
    function = lambda h, w: next_token(h, targets, Head(w, None, 1.5, 4.0), boundary, entropy=True)[:3]  # noqa: E731
    assert torch.autograd.gradcheck(function, (hidden, head.weight_VH))


@given(scale=st.sampled_from([1.0, 1e2, 1e4]), sign=st.sampled_from([-1.0, 1.0]))
def test_extreme_logits_stay_finite(scale: float, sign: float) -> None:
    """The boundary set may be impossible (its probability underflows float32) or certain."""
    weight = torch.eye(4) * scale * sign
    hidden = torch.eye(4, requires_grad=True)
    targets, boundary = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2])
    token, share = token_and_boundary_logprobs(hidden, targets, Head(weight.requires_grad_()), boundary)
    expected = dense_logprobs(hidden.double(), targets, Head(weight.double()), boundary)
    torch.testing.assert_close(token.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(share.double(), expected[1], rtol=1e-5, atol=1e-5)
    (token + share).sum().backward()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


@given(scale=st.sampled_from([1.0, 30.0, 1e4]), boundary=st.sampled_from([[0, 2], [0], [0, 1, 2, 3], [3]]))
def test_gradients_of_extreme_logits_are_those_of_float64(scale: float, boundary: list[int]) -> None:
    """Also if the boundary set is impossible or certain."""
    generator = torch.Generator().manual_seed(int(scale))
    hidden, weight = (torch.randn(4, 4, generator=generator).requires_grad_() for _ in range(2))
    head, targets, ids = Head(weight, None, scale), torch.arange(4), torch.tensor(boundary)
    exact = Head(weight.detach().double().requires_grad_(), None, scale)
    exact_hidden = hidden.detach().double().requires_grad_()
    expected = numbers_and_gradients(lambda: looped(exact_hidden, targets, exact, ids), [exact_hidden, exact.weight_VH])
    got = numbers_and_gradients(lambda: next_token(hidden, targets, head, ids, entropy=True), [hidden, weight])
    for expected_part, part in zip(expected, got, strict=True):
        assert torch.isfinite(part).all()
        # logits of 1e4 are themselves off by 1e-3 in float32, and so is a chance, relatively
        tolerance = 1e-6 * max(scale, 10)
        torch.testing.assert_close(part.double(), expected_part, rtol=tolerance, atol=tolerance * max(scale, 1.0))


def test_bfloat16_weights_are_summed_in_float32() -> None:
    hidden, targets, head, boundary = random_case(50, 300)
    rounded = Head(head.weight_VH.detach().bfloat16())
    token, share = token_and_boundary_logprobs(hidden.detach().bfloat16(), targets, rounded, boundary)
    assert token.dtype == share.dtype == torch.float32
    expected = dense_logprobs(hidden, targets, head, boundary)
    # bfloat16 has 8 bits: logits of magnitude 8 are off by up to 0.03
    torch.testing.assert_close(token.double(), expected[0], rtol=0, atol=0.1)
    torch.testing.assert_close(share.double(), expected[1], rtol=0, atol=0.1)


def test_bfloat16_gradients_are_within_a_hundredth_of_their_length() -> None:
    hidden, targets, head, boundary = random_case(50, 300)
    rounded = Head(head.weight_VH.detach().bfloat16().requires_grad_())
    leaves = [hidden.detach().bfloat16().requires_grad_(), rounded.weight_VH]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = dense_logprobs(exact[0], targets, Head(exact[1]), boundary)
    got = token_and_boundary_logprobs(leaves[0], targets, rounded, boundary)
    for exact_grad, grad in zip(
        torch.autograd.grad(torch.stack(expected).sum(), exact),
        torch.autograd.grad(torch.stack(got).sum(), leaves),
        strict=True,
    ):
        assert grad.dtype == torch.bfloat16
        assert torch.linalg.vector_norm(grad.double() - exact_grad) < 0.01 * torch.linalg.vector_norm(exact_grad)


def test_nothing_is_held_after_the_numbers_are_freed() -> None:
    hidden, targets, head, boundary = random_case(4, 9)
    numbers = next_token(hidden, targets, head, boundary, entropy=True, top=2)
    kept = weakref.ref(numbers.boundary_logprobs_N.grad_fn)
    gc.disable()
    try:
        del numbers
        assert kept() is None
    finally:
        gc.enable()


def test_boundary_and_other_probabilities_add_up_to_one() -> None:
    """Also if matrix products round to bfloat16; no probability is above 1."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 64, generator=generator) for rows in (200, 5000))
    targets, ids = torch.zeros(200, dtype=torch.int64), torch.arange(5000)
    head = Head(weight / 4, None, 1.0, None)
    with matmul_precision("medium"):
        chances = [
            token_and_boundary_logprobs(hidden, targets, head, part)[1]
            for part in (ids, ids[:-1], ids[:2000], ids[2000:])
        ]
    assert all((part <= 0).all() for part in chances)
    torch.testing.assert_close(chances[0], torch.zeros(200), rtol=0, atol=1e-6)
    torch.testing.assert_close(chances[2].exp() + chances[3].exp(), torch.ones(200), rtol=0, atol=1e-6)
