"""Chunk likelihoods, and the two losses that need no live teacher, checked against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.objective.alm import ChunkPlaces, alm_loss, chunk_logprobs, sft_loss
from alm_pipeline.objective.batch_loss import LossCounts, ScoredBatch


def test_chunk_logprobs_are_segment_sums() -> None:
    tokens, boundary = torch.tensor([-9.0, -1.0, -2.0, -3.0, -4.0]), torch.tensor([-0.1, -0.2, -0.3, -0.4, -0.5])
    covered, first, last = torch.tensor([False, True, True, True, False]), torch.tensor([1, 3, 1]), [2, 3, 3]

    def logprobs(starts: list[bool], ends: list[bool]) -> torch.Tensor:
        places = ChunkPlaces(covered, first, torch.tensor(last), torch.tensor(starts), torch.tensor(ends))
        return chunk_logprobs(tokens, boundary, places)

    no, yes = [False] * 3, [True] * 3
    torch.testing.assert_close(logprobs(no, no), torch.tensor([-3.0, -3.0, -6.0]))
    torch.testing.assert_close(logprobs(no, yes), torch.tensor([-3.3, -3.4, -6.4]))
    torch.testing.assert_close(logprobs([True, False, True], [True, True, False]), torch.tensor([-3.2, -3.4, -5.9]))


def test_sums_keep_the_precision_of_float32_behind_a_million_tokens() -> None:
    tokens = torch.full((1_000_001,), -7.3)
    tokens[-2:] = torch.tensor([-1e-5, -2e-5])
    no = torch.zeros(1, dtype=torch.bool)
    places = ChunkPlaces(tokens < 0, torch.tensor([999_999]), torch.tensor([1_000_000]), no, no)
    torch.testing.assert_close(chunk_logprobs(tokens, tokens, places), torch.tensor([-3e-5]), rtol=1e-4, atol=0)


def test_rounding_makes_no_probability_above_one() -> None:
    one, yes, no = torch.tensor([1]), torch.tensor([True]), torch.tensor([False])
    places = ChunkPlaces(torch.tensor([False, True]), one, one, yes, no)
    assert chunk_logprobs(torch.tensor([0.0, -0.5]), torch.tensor([-0.5000001, 0.0]), places).item() == 0


def test_a_token_of_no_chunk_may_be_nan_and_has_no_gradient() -> None:
    tokens = torch.tensor([math.nan, -1.0, -math.inf], requires_grad=True)
    one, yes = torch.tensor([1]), torch.tensor([True])
    places = ChunkPlaces(torch.tensor([False, True, False]), one, one, yes, yes)
    result = chunk_logprobs(tokens, torch.zeros(3), places)
    assert result.tolist() == [-1.0]
    result.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [0.0, 1.0, 0.0]


@st.composite
def batches(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Positions in chunks, which may overlap, with gaps between some of them."""
    positions = draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    most = draw(st.integers(0, 6)) if positions > 1 else 0
    bounds = [sorted(draw(st.tuples(*[st.integers(1, positions - 1)] * 2))) for _ in range(most)]
    covered = torch.zeros(positions, dtype=torch.bool)
    for start, end in bounds:
        covered[start : end + 1] = True
    flags = torch.tensor(draw(st.lists(st.booleans(), min_size=2 * most, max_size=2 * most)), dtype=torch.bool)
    first, last = torch.tensor(bounds, dtype=torch.int64).reshape(-1, 2).T
    numbers = -5 * torch.rand(3, positions, generator=generator, dtype=torch.float64)
    return {
        "next_token_logprobs_N": numbers[0],
        "boundary_logprobs_N": numbers[1],
        "predicted_N": torch.tensor([draw(st.booleans()) for _ in range(positions)]),
        "covered_N": covered,
        "first_token_C": first,
        "last_token_C": last,
        "starts_debiased_C": flags[:most],
        "ends_debiased_C": flags[most:],
        "teacher_logprobs_C": -8 * torch.rand(len(last), generator=generator, dtype=torch.float64) - 0.01,
    }


def loop_losses(batch: dict[str, torch.Tensor], tau: float) -> tuple[float, float, float]:
    """The oracle: (alm, kl, sft), chunk by chunk."""
    epsilon, values, kls = 1e-6, [], []
    for chunk, last in enumerate(batch["last_token_C"].tolist()):
        first = int(batch["first_token_C"][chunk])
        student = math.fsum(batch["next_token_logprobs_N"][first - 1 : last].tolist())
        student += float(batch["boundary_logprobs_N"][last]) if batch["ends_debiased_C"][chunk] else 0
        student -= float(batch["boundary_logprobs_N"][first - 1]) if batch["starts_debiased_C"][chunk] else 0
        student = min(student, 0)
        a, b = (float(side) / tau - epsilon for side in (batch["teacher_logprobs_C"][chunk], student))
        p, q = math.exp(a), math.exp(b)
        values.append(-(p * b + (1 - p) * math.log(1 - q)))
        kls.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    predicted = [k for k, counts in enumerate(batch["predicted_N"].tolist()) if counts]
    sft = [-float(batch["next_token_logprobs_N"][k - 1]) for k in predicted]
    means = [math.fsum(numbers) / max(1, len(numbers)) for numbers in (values, kls, sft)]
    return means[0], means[1], means[2]


@settings(deadline=None)
@given(batch=batches(), tau=st.sampled_from([1.0, 5.0, 100.0]))
def test_a_batchs_losses_are_the_loop(batch: dict[str, torch.Tensor], tau: float) -> None:
    counts = LossCounts.of({**batch, "aligned": torch.tensor(1)})
    numbers = batch["next_token_logprobs_N"], batch["boundary_logprobs_N"]
    scored = ScoredBatch.of(*numbers, batch, ObjectiveConfig(temperature=tau), counts)
    alm, kl, sft = loop_losses(batch, tau)
    assert scored.alm().item() == pytest.approx(alm, rel=1e-9)
    assert scored.watched()["kl"].item() == pytest.approx(kl, rel=1e-6, abs=1e-12)
    assert scored.sft().item() == pytest.approx(sft, rel=1e-9)
    assert scored.watched()["tokens_in_chunks"] == batch["covered_N"].sum()


@settings(deadline=None)
@given(batch=batches())
def test_gradients_of_a_batchs_losses(batch: dict[str, torch.Tensor]) -> None:
    counts = LossCounts.of({**batch, "aligned": torch.tensor(1)})

    def both(tokens: torch.Tensor, boundary: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scored = ScoredBatch.of(tokens, boundary, batch, ObjectiveConfig(temperature=5.0), counts)
        return scored.alm(), scored.sft()

    numbers = [batch[name].clone().requires_grad_() for name in ("next_token_logprobs_N", "boundary_logprobs_N")]
    assert torch.autograd.gradcheck(both, numbers)


def test_a_batch_without_chunks_or_predictions_has_zero_losses() -> None:
    tokens = torch.tensor([-1.0, -2.0], requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    places = ChunkPlaces(torch.zeros(2, dtype=torch.bool), nothing, nothing, nothing.bool(), nothing.bool())
    student = chunk_logprobs(tokens, tokens, places)
    total = alm_loss(torch.zeros(0), student) + sft_loss(tokens, torch.tensor([False, False]))
    assert total.item() == 0
    total.backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [0.0, 0.0]


@given(shares=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_micro_batches_add_up_to_the_global_mean(shares: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(shares))
    teacher, student = -3 * torch.rand(2, sum(shares), generator=generator, dtype=torch.float64) - 0.1
    whole = alm_loss(teacher, student)
    parts = zip(teacher.split(shares), student.split(shares), strict=True)
    added = torch.stack([alm_loss(*part, count=torch.tensor(sum(shares))) for part in parts]).sum()
    torch.testing.assert_close(added, whole)
    tokens = torch.stack([sft_loss(part, part < 0, count=sum(shares)) for part in student.split(shares)]).sum()
    torch.testing.assert_close(tokens, sft_loss(student, student < 0))


def test_one_token_chunks_of_one_tokenizer_are_the_token_level_binary_loss() -> None:
    """A byte-identical pair of tokenizers, no debiasing, unconstrained: token by token."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.log_softmax(torch.randn(2, 6, 9, generator=generator, dtype=torch.float64), -1)
    ids = torch.tensor([3, 1, 4, 1, 5, 2])
    next_teacher, next_student = (side.gather(-1, ids.roll(-1)[:, None])[:, 0] for side in (teacher, student))
    batch = {
        "covered_N": torch.arange(6) > 0,
        "first_token_C": torch.arange(1, 6),
        "last_token_C": torch.arange(1, 6),
        "starts_debiased_C": torch.zeros(5, dtype=torch.bool),
        "ends_debiased_C": torch.zeros(5, dtype=torch.bool),
        "predicted_N": torch.arange(6) > 0,
        "teacher_logprobs_C": next_teacher[:-1],
    }
    objective = ObjectiveConfig(temperature=1.0, debias="none")
    counts = LossCounts.of({**batch, "aligned": torch.tensor(5)})
    scored = ScoredBatch.of(next_student, next_student, batch, objective, counts)
    p, q = (side[:-1].exp() * math.exp(-1e-6) for side in (next_teacher, next_student))
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    torch.testing.assert_close(scored.alm(), expected)
