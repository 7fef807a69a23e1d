"""The objective, held to loops in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.objective.alm import binary_cross_entropy, binary_kl, chunk_logprobs, log1mexp
from alm_pipeline.objective.merging import AlignedScores, merged_chunks
from storage.schemas import ChunkKind

logprob = st.floats(-200.0, -1e-4)
gammas = st.sampled_from([None, 0.0, 0.1, 0.5, 1.0])


@given(st.lists(st.floats(-700.0, -1e-12), min_size=1, max_size=20))
def test_log1mexp(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    result = log1mexp(x)
    for value, got in zip(values, result.tolist(), strict=True):
        expected = math.log(-math.expm1(value)) if value > -0.5 else math.log1p(-math.exp(value))
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-300)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.isfinite(gradient).all()


def loop_binary_ce(teacher: float, student: float, temperature: float) -> float:
    a, b = teacher / temperature - 1e-6, student / temperature - 1e-6
    return -(math.exp(a) * b + -math.expm1(a) * math.log(-math.expm1(b)))


@given(teacher=logprob, student=logprob, temperature=st.sampled_from([1.0, 5.0, 100.0]))
def test_binary_cross_entropy_and_kl(teacher: float, student: float, temperature: float) -> None:
    sides = torch.tensor([[teacher], [student]], dtype=torch.float64)
    expected = loop_binary_ce(teacher, student, temperature)
    assert binary_cross_entropy(sides[0], sides[1], temperature).item() == pytest.approx(expected, rel=1e-9)
    kl = binary_kl(sides[0], sides[1], temperature).item()
    entropy = loop_binary_ce(teacher, teacher, temperature)
    assert kl == pytest.approx(expected - entropy, rel=1e-6, abs=1e-12)
    assert kl >= -1e-12


def test_the_divergence_is_zero_and_flat_where_both_agree() -> None:
    teacher = torch.tensor([-0.01, -3.0, -150.0], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    assert binary_kl(teacher, student, 5.0).abs().max() < 1e-15
    (gradient,) = torch.autograd.grad(binary_cross_entropy(teacher, student, 5.0).sum(), student)
    assert gradient.abs().max() < 1e-9


def test_likelihoods_of_zero_and_one_stay_finite_in_float32() -> None:
    extremes = torch.tensor([0.0, -1e-8, -1.0, -1e4])
    for teacher in extremes:
        student = extremes.clone().requires_grad_()
        loss = binary_cross_entropy(teacher.expand(4), student, 1.0).sum()
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_chunk_logprobs_are_segment_sums() -> None:
    tokens, boundary = torch.tensor([-9.0, -1.0, -2.0, -3.0, -4.0]), torch.tensor([-0.1, -0.2, -0.3, -0.4, -0.5])
    chunk_of_token, last = torch.tensor([-1, 0, 0, 1, -1]), torch.tensor([2, 3])
    plain = chunk_logprobs(tokens, boundary, chunk_of_token, last, debias=False)
    debiased = chunk_logprobs(tokens, boundary, chunk_of_token, last, debias=True)
    torch.testing.assert_close(plain, torch.tensor([-3.0, -3.0]))
    torch.testing.assert_close(debiased, torch.tensor([-3.3, -3.4]))


def test_a_token_of_no_chunk_may_be_nan() -> None:
    tokens, boundary = torch.tensor([math.nan, -1.0]), torch.tensor([-0.1, -0.2])
    result = chunk_logprobs(tokens, boundary, torch.tensor([-1, 0]), torch.tensor([1]), debias=False)
    assert result.tolist() == [-1.0]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, np.ndarray]:
    kinds = draw(st.lists(st.sampled_from(list(ChunkKind)), min_size=1, max_size=12))
    least = [0 if kind == ChunkKind.UNPAIRED else 1 for kind in kinds]
    teacher, student = ([draw(st.integers(low, 3)) for low in least] for _ in range(2))
    tokens = sum(teacher)
    logprobs = np.array(draw(st.lists(logprob, min_size=tokens, max_size=tokens)), dtype=np.float32)
    if tokens:
        logprobs[0] = np.nan
    boundary = np.array(draw(st.lists(st.floats(-6, 0), min_size=tokens, max_size=tokens)), dtype=np.float32)
    return {
        "teacher_tokens": np.array(teacher, dtype=np.int64),
        "student_tokens": np.array(student, dtype=np.int64),
        "kinds": np.array(kinds, dtype=np.uint8),
        "logprobs": logprobs,
        "boundary_logprobs": boundary,
    }


def loop_merged(case: dict[str, np.ndarray], gamma: float | None, debias: bool) -> list[tuple[float, int, int]]:
    """The oracle: chunk by chunk, token by token."""
    found: list[tuple[float, int, int]] = []
    group: list[int] = []
    teacher = student = 0
    spans = []
    for n_teacher, n_student in zip(case["teacher_tokens"], case["student_tokens"], strict=True):
        spans.append((teacher, teacher + n_teacher, student, student + n_student))
        teacher, student = teacher + n_teacher, student + n_student

    def close() -> None:
        if group:
            tokens = [float(case["logprobs"][i]) for k in group for i in range(spans[k][0], spans[k][1])]
            last = spans[group[-1]][1] - 1
            value = math.fsum(tokens) + (float(case["boundary_logprobs"][last]) if debias else 0.0)
            start, end = spans[group[0]][2], spans[group[-1]][3]
            if not math.isnan(value) and start > 0:
                found.append((value, start, end))
        group.clear()

    for k, kind in enumerate(case["kinds"]):
        if kind == ChunkKind.UNPAIRED:
            close()
            continue
        group.append(k)
        if gamma is None or math.exp(case["boundary_logprobs"][spans[k][1] - 1]) > gamma:
            close()
    close()
    return found


def merged(examples: list[dict[str, np.ndarray]], gamma: float | None, debias: bool) -> list[list[tuple[float, ...]]]:
    """`merged_chunks` of all examples at once, as `loop_merged` tells of each."""
    columns = {name: np.concatenate([example[name] for example in examples]) for name in examples[0]}
    offsets = [
        np.cumsum([0, *(len(example[name]) for example in examples)], dtype=np.int64) for name in ("kinds", "logprobs")
    ]
    chunks = merged_chunks(
        AlignedScores(chunk_offsets=offsets[0], token_offsets=offsets[1], **columns), gamma=gamma, debias=debias
    )
    rows = [chunks.logprobs.tolist(), chunks.student_starts.tolist(), chunks.student_ends.tolist()]
    assert len(rows[0]) == len(rows[1]) == len(rows[2]) == chunks.offsets[-1]
    found = list(zip(*rows, strict=True))
    return [found[start:end] for start, end in itertools.pairwise(chunks.offsets.tolist())]


@settings(deadline=None)  # the first call compiles
@given(examples=st.lists(cases(), min_size=1, max_size=4), gamma=gammas, debias=st.booleans())
def test_merging_is_the_loop(examples: list[dict[str, np.ndarray]], gamma: float | None, debias: bool) -> None:
    for got, example in zip(merged(examples, gamma, debias), examples, strict=True):
        expected = loop_merged(example, gamma, debias)
        assert [row[1:] for row in got] == [row[1:] for row in expected]
        np.testing.assert_allclose([row[0] for row in got], [row[0] for row in expected], rtol=1e-5)


def test_an_example_without_chunks_has_none_whatever_its_scores() -> None:
    """One that the student could not tokenize still has teacher scores."""
    none = {"teacher_tokens": np.zeros(0, np.int32), "student_tokens": np.zeros(0, np.int32)}
    dropped = {**none, "kinds": np.zeros(0, np.uint8)}
    scores = {"logprobs": np.float32([-1, -2]), "boundary_logprobs": np.float32([-1, -1])}
    one = {"teacher_tokens": np.array([1, 1]), "student_tokens": np.array([1, 2]), "kinds": np.uint8([0, 0])}
    rows = merged([{**dropped, **scores}, {**one, **scores}], None, False)
    assert rows == [[], [(-2.0, 1, 3)]]


@settings(deadline=None)
@given(example=cases(), missing=st.booleans())
def test_other_scores_than_the_chunks_are_refused(example: dict[str, np.ndarray], missing: bool) -> None:
    for name in ("logprobs", "boundary_logprobs"):
        example[name] = example[name][:-1] if missing and len(example[name]) else np.append(example[name], -1)
    with pytest.raises(ValueError, match="example 0 hold other teacher tokens"):
        merged([example], 0.1, True)


@settings(deadline=None)
@given(case=cases())
def test_gamma_zero_is_unconstrained(case: dict[str, np.ndarray]) -> None:
    assert merged([case], 0.0, True) == merged([case], None, True)
