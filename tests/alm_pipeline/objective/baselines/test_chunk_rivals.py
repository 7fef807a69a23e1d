"""GOLD and SimCT: the numbers of their authors' own code, loops in float64, and what they can't see.

`GOLDEN` were computed by TRL's ULDLoss (commit f2cd577) and SimCT's SpanCrossTokenizerKD (commit 4dae6fc) on these
logits, with the spans that are here; ours are those numbers and their gradients to 1e-15.
"""

from collections.abc import Sequence
from functools import cached_property

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.baselines.chunk_places import SidePlaces, one_to_one, predicted_chunks
from alm_pipeline.objective.baselines.gold import gold_loss
from alm_pipeline.objective.baselines.simct import simct_loss, span_logits
from alm_pipeline.scoring.head import next_token

VOCABULARY = ["<e>", "a", "b", "ab", "c", "d", "cd"]
TEACHER_VOCABULARY = ["<e>", "abc", "a", "bc", "d", "c", "b", "x", "y"]
TOKENS, TEACHER_TOKENS = ["d", "a", "b", "cd", "ab", "c"], ["d", "abc", "d", "a", "b", "c"]
GOLDEN = {"gold": (0.19523966976012222, 0.08796609197236295), "simct": (1.4477221441634094, 2.2716293132133245)}
"""(loss, sum of the absolute gradients of the student's logits)"""


class Side:
    """A side whose head is the identity, so that its hidden states are its logits. The first token is context."""

    def __init__(self, vocabulary: Sequence[str], tokens: Sequence[str], logits: Tensor) -> None:
        self.vocabulary, self.tokens, self.logits = vocabulary, tokens, logits
        self.ids = torch.tensor([vocabulary.index(token) for token in tokens])
        self.head = Head(torch.eye(len(vocabulary), dtype=torch.float64))

    @cached_property
    def ends(self) -> list[int]:
        return [sum(map(len, self.tokens[1 : k + 1])) for k in range(len(self.tokens))]

    def places(self, other: "Side") -> SidePlaces:
        """The finest spans that begin and end with tokens on both sides."""
        shared, first, firsts, lasts = set(self.ends) & set(other.ends), 1, [], []
        for k in range(1, len(self.tokens)):
            if self.ends[k] in shared:
                firsts.append(first)
                lasts.append(k)
                first = k + 1
        return SidePlaces(torch.tensor(firsts), torch.tensor(lasts))

    def logprob(self, k: int) -> Tensor:
        """Of token k."""
        return self.logits[k - 1].log_softmax(-1)[self.ids[k]]


def sides(seed: int = 5) -> tuple[Side, Side]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(TOKENS), len(VOCABULARY), generator=generator, dtype=torch.float64)
    theirs = torch.randn(len(TEACHER_TOKENS), len(TEACHER_VOCABULARY), generator=generator, dtype=torch.float64)
    student = Side(VOCABULARY, TOKENS, logits.requires_grad_())
    return Side(TEACHER_VOCABULARY, TEACHER_TOKENS, theirs), student


def mapping_of(teacher: Side, student: Side) -> Tensor:
    ids = {token: id_ for id_, token in enumerate(teacher.vocabulary)}
    return torch.tensor([ids.get(token, -1) for token in student.vocabulary])


def before(side: Side, places: SidePlaces) -> Tensor:
    head = SidePlaces(places.first_A, places.last_A - 1)
    positions_T, chunk_T = head.tokens()
    numbers = next_token(side.logits[positions_T - 1], side.ids[positions_T], side.head, positions_T[:0])
    return head.sums(numbers.target_logprobs_N, chunk_T)


def loss_of(term: str, teacher: Side, student: Side, count: int | None = None) -> Tensor:
    theirs, ours, mapping = teacher.places(student), student.places(teacher), mapping_of(teacher, student)
    heads = teacher.head, student.head
    if term == "gold":
        hidden = teacher.logits[theirs.last_A - 1], student.logits[ours.last_A - 1]
        return gold_loss(*hidden, before(teacher, theirs), before(student, ours), *heads, mapping, count=count)
    spans = [span_logits(side.logits, side.ids, of, side.head) for side, of in ((teacher, theirs), (student, ours))]
    is_span = (theirs.last_A > theirs.first_A) | (ours.last_A > ours.first_A)
    hidden = teacher.logits[theirs.first_A - 1], student.logits[ours.first_A - 1]
    return simct_loss(*hidden, spans[0], spans[1], is_span, *heads, mapping, count=count)


@pytest.mark.parametrize("term", GOLDEN)
def test_losses_and_gradients_are_those_of_the_authors_code(term: str) -> None:
    teacher, student = sides()
    # that code averages GOLD over spans, and SimCT over a number of tokens that its trainer sets
    loss = loss_of(term, teacher, student, count=None if term == "gold" else 1)
    loss.backward()
    assert student.logits.grad is not None
    assert (loss.item(), float(student.logits.grad.abs().sum())) == pytest.approx(GOLDEN[term], rel=1e-13)


def loop(term: str, teacher: Side, student: Side) -> Tensor:
    """The definitions, span by span and token by token."""
    shared = [token for token in student.vocabulary if token in teacher.vocabulary]
    spans = list(zip(*(of.tolist() for of in (*teacher.places(student), *student.places(teacher))), strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for teacher_first, teacher_last, first, last in spans:
        ends = (teacher, teacher_first, teacher_last), (student, first, last)
        total = total + (_gold_span if term == "gold" else _simct_span)(shared, *ends)
    return total / len(spans)


def _gold_span(shared: list[str], *ends: tuple[Side, int, int]) -> Tensor:
    probabilities = []
    for side, first, last in ends:
        scale = sum((side.logprob(k) for k in range(first, last)), torch.zeros((), dtype=torch.float64)).exp()
        merged = side.logits[last - 1].softmax(-1) * scale
        probabilities.append({token: merged[id_] for id_, token in enumerate(side.vocabulary)})
    matched = torch.zeros((), dtype=torch.float64)
    for token in shared:
        p, q = (of[token].clamp_min(1e-8) for of in probabilities)
        mixed = (p + q) / 2
        matched = matched + p / 2 * (p / mixed).log() + q / 2 * (q / mixed).log()
    others = [sorted((v for t, v in of.items() if t not in shared), reverse=True) for of in probabilities]
    longest = max(map(len, others))
    padded = [[*values, *[torch.zeros((), dtype=torch.float64)] * (longest - len(values))] for values in others]
    unmatched = sum((p - q).abs() for p, q in zip(*padded, strict=True))
    share = len(shared) / len(ends[0][0].vocabulary)
    return share * matched + (1 - share) * unmatched


def _simct_span(shared: list[str], *ends: tuple[Side, int, int]) -> Tensor:
    is_span = any(last > first for _, first, last in ends)
    choices = []
    for side, first, last in ends:
        logits = [side.logits[first - 1][side.vocabulary.index(token)] for token in shared]
        if is_span:
            logits.append(sum(side.logits[k - 1][side.ids[k]] for k in range(first, last + 1)) / (last - first + 1))
        choices.append(torch.stack(logits).log_softmax(-1))
    teacher, student = choices
    return (student.exp() * (student - teacher)).sum()


@pytest.mark.usefixtures("piece_elements")
@pytest.mark.parametrize("term", GOLDEN)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_losses_and_gradients_are_the_loops(term: str, seed: int) -> None:
    teacher, student = sides(seed)
    ours = torch.autograd.grad(loss_of(term, teacher, student), student.logits)[0]
    expected = torch.autograd.grad(loop(term, teacher, student), student.logits)[0]
    torch.testing.assert_close(loss_of(term, teacher, student), loop(term, teacher, student))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("term", GOLDEN)
def test_a_student_like_its_teacher_has_no_loss_and_no_gradient(term: str) -> None:
    teacher, _ = sides()
    student = Side(teacher.vocabulary, teacher.tokens, teacher.logits.clone().requires_grad_())
    loss = loss_of(term, teacher, student)
    loss.backward()
    assert student.logits.grad is not None
    assert abs(loss.item()) < 1e-12
    assert float(student.logits.grad.abs().max()) < 1e-12


def test_tokens_match_one_to_one() -> None:
    mapping = torch.tensor([3, -1, 3, 0, 9, 1])
    ids, teacher_ids = one_to_one(mapping, teacher_rows=9, student_rows=5)
    assert (ids.tolist(), teacher_ids.tolist()) == ([3, 0], [0, 3])
    assert [len(of) for of in one_to_one(torch.tensor([-1, -1]), 4, 4)] == [0, 0]


def test_chunks_at_the_beginning_are_left_out() -> None:
    teacher = SidePlaces(torch.tensor([0, 1]), torch.tensor([0, 2]))
    student = SidePlaces(torch.tensor([0, 2]), torch.tensor([1, 2]))
    predicted = torch.tensor([False, True, True])
    assert predicted_chunks(teacher, student, predicted, predicted).tolist() == [False, True]


@pytest.mark.parametrize("term", GOLDEN)
def test_without_shared_tokens_or_chunks_the_loss_is_finite(term: str) -> None:
    teacher, student = sides()
    apart = Side([f"{token}!" for token in TEACHER_VOCABULARY], [f"{t}!" for t in TEACHER_TOKENS], teacher.logits)
    apart.ends = teacher.ends  # type: ignore[misc]
    assert torch.isfinite(loss_of(term, apart, student))
    none = torch.zeros(0, dtype=torch.int64)
    hidden, empty = (teacher.logits[none], student.logits[none]), torch.zeros(0, dtype=torch.float64)
    heads, mapping = (teacher.head, student.head), mapping_of(teacher, student)
    if term == "gold":
        assert gold_loss(*hidden, empty, empty, *heads, mapping).item() == 0.0
    else:
        assert simct_loss(*hidden, empty, empty, none.bool(), *heads, mapping).item() == 0.0
