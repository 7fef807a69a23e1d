"""The head in pieces, held to a dense float64 log-softmax."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alm_pipeline.models import matmul_precision
from alm_pipeline.scoring import head as head_module
from alm_pipeline.scoring.head import Head, output_head, token_and_boundary_logprobs
from storage.errors import UserError
from tests import tiny


def dense_logprobs(hidden: Tensor, targets: Tensor, head: Head, boundary: Tensor) -> tuple[Tensor, Tensor]:
    """The oracle: every logit at once."""
    logits = hidden @ head.weight_VH.T * head.scale
    if head.bias_V is not None:
        logits = (hidden @ head.weight_VH.T + head.bias_V) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logprobs = torch.log_softmax(logits, -1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), logprobs[:, boundary].logsumexp(-1)


def random_case(
    positions: int, vocabulary: int, *, bias: bool = False, scale: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor, Head, Tensor]:
    generator = torch.Generator().manual_seed(positions * 1000 + vocabulary)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    boundary = torch.randperm(vocabulary, generator=generator)[: max(1, vocabulary // 3)].sort().values
    head = Head(
        random(vocabulary, 6).requires_grad_(), random(vocabulary).requires_grad_() if bias else None, scale, softcap
    )
    return random(positions, 6).requires_grad_(), targets, head, boundary


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


def test_gradcheck() -> None:
    hidden, targets, head, boundary = random_case(4, 5, softcap=4.0)
    function = lambda h, w: token_and_boundary_logprobs(h, targets, Head(w, None, 1.5, 4.0), boundary)  # noqa: E731
    assert torch.autograd.gradcheck(function, (hidden, head.weight_VH))


@given(scale=st.sampled_from([1.0, 1e2, 1e4]), sign=st.sampled_from([-1.0, 1.0]))
def test_extreme_logits_stay_finite(scale: float, sign: float) -> None:
    """The boundary set may be hopeless (its share underflows float32) or certain."""
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


def test_bfloat16_weights_are_summed_in_float32() -> None:
    hidden, targets, head, boundary = random_case(50, 300)
    rounded = Head(head.weight_VH.detach().bfloat16())
    token, share = token_and_boundary_logprobs(hidden.detach().bfloat16(), targets, rounded, boundary)
    assert token.dtype == share.dtype == torch.float32
    expected = dense_logprobs(hidden, targets, head, boundary)
    # bfloat16 has 8 bits: logits of magnitude 8 are off by up to 0.03
    torch.testing.assert_close(token.double(), expected[0], rtol=0, atol=0.1)
    torch.testing.assert_close(share.double(), expected[1], rtol=0, atol=0.1)


def test_the_head_of_a_model_with_soft_capping() -> None:
    assert output_head(tiny.tiny_gemma(50)).softcap == 5.0


def test_the_head_gives_the_logits_of_the_model() -> None:
    for model in (tiny.tiny_llama(50), tiny.tiny_gemma(50)):
        ids = torch.arange(10)[None]
        with torch.no_grad():
            hidden = model.base_model(input_ids=ids).last_hidden_state
            torch.testing.assert_close(output_head(model).logits(hidden), model(input_ids=ids).logits)


def test_a_head_that_is_not_linear_is_refused() -> None:
    model = tiny.tiny_llama(50)
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings()))
    with pytest.raises(UserError, match="no linear layer"):
        output_head(model)


def test_what_is_boundary_and_what_is_not_make_one() -> None:
    """Also where matrix products round to bfloat16; nothing is likelier than certain."""
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
