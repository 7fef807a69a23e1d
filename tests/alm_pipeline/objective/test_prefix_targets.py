"""Targets of next tokens, against their definition in plain Python, and against exact token models of one text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.models.output_head import Head
from alm_pipeline.objective.bpm import bpm_loss
from alm_pipeline.objective.prefix_arrays import ChunkTokens, PrefixTable, PrefixTargets, TopTokens
from alm_pipeline.objective.prefix_kernel import LEAST_PROBABILITY, MOST_DOUBTFUL
from alm_pipeline.objective.prefix_table import prefix_table
from alm_pipeline.objective.prefix_targets import prefix_targets
from alm_pipeline.scoring.head import ListedTokens, next_token
from alm_pipeline.vocabulary.byte_view import ByteView
from storage.errors import UserError
from storage.schemas import ChunkKind

SPECIAL = 0
"""the id of the begin-of-text token on both sides"""
Target = dict[int, float]


def view_of(spellings: Sequence[bytes], drops_space: bool = False) -> ByteView:
    """A vocabulary whose first token is special."""
    count = len(spellings)
    return ByteView(
        spelling=tuple(spellings),
        lengths=np.array(list(map(len, spellings)), np.int32),
        special=np.arange(count) == SPECIAL,
        starts_word=np.array([text[:1] in (b" ", b"\n") for text in spellings], np.bool_),
        fallback=np.zeros(count, np.bool_),
        arrow=pa.array(spellings, pa.large_binary()),
        unknown=None,
        space=None,
        drops_space=drops_space,
        added={},
    )


def tokenized(text: bytes, view: ByteView) -> list[int]:
    """Begin of text, and then always the longest token."""
    ids = [SPECIAL]
    while text:
        ids.append(
            max(
                (id_ for id_ in range(1, view.size) if text.startswith(view.spelling[id_])),
                key=view.lengths.__getitem__,
            )
        )
        text = text[view.lengths[ids[-1]] :]
    return ids


@dataclass(frozen=True)
class Case:
    """One text on both sides."""

    teacher: ByteView
    student: ByteView
    text: bytes

    @property
    def ids(self) -> tuple[list[int], list[int]]:
        return tokenized(self.text, self.teacher), tokenized(self.text, self.student)

    def ends(self, view: ByteView) -> dict[int, int]:
        """The number of tokens up to each byte position at which a token ends."""
        ids = tokenized(self.text, view)[1:]
        return {0: 1} | {sum(view.lengths[ids[: k + 1]]): k + 2 for k in range(len(ids))}

    def common(self) -> list[tuple[int, int, int]]:
        """(byte position, teacher tokens, student tokens) at each end of both sides."""
        teacher, student = self.ends(self.teacher), self.ends(self.student)
        return [(place, teacher[place], student[place]) for place in sorted(teacher.keys() & student.keys())]

    def is_anchor(self, place: int) -> bool:
        """Whether a word ends there."""
        return self.text[place : place + 1].isspace() and not self.text[max(0, place - 1) : place].isspace()

    def chunks(self, learned: Sequence[bool]) -> ChunkTokens:
        """A pair of begin-of-text tokens, and the chunks between common ends."""
        sizes = np.array([(0, 1, 1), *(np.subtract(end, start) for start, end in pairwise(self.common()))])
        kinds = np.array([ChunkKind.PAIRED, *[ChunkKind.CONTENT] * (len(sizes) - 1)], np.uint8)
        ids = (np.array(ids, np.int32) for ids in self.ids)
        sides = [array for side in ids for array in (side, np.array([0, len(side)]))]
        columns = (sizes[:, 1], sizes[:, 2], sizes[:, 0], kinds, np.resize(np.array(learned), len(sizes)))
        anchored = np.array([*(self.is_anchor(place) for place, *_ in self.common())])
        return ChunkTokens(np.array([0, len(sizes)]), *columns, anchored, *sides)


def defined(case: Case, top: TopTokens, ranks: int, learned: Sequence[bool], given_boundary: bool) -> dict[int, Target]:
    """The targets by the student token that they are of, as the definition says it."""
    teacher, student = case.teacher, case.student
    mask, targets = np.resize(np.array(learned), len(case.common())), dict[int, Target]()
    for chunk, (place, t, s) in enumerate(case.common()[:-1], 1):
        if mask[chunk] and (not given_boundary or case.is_anchor(place)):
            row = slice((t - 1) * ranks, t * ranks)
            likely = dict(zip(top.ids[row].tolist(), np.exp(top.logprobs[row].astype(float)).tolist(), strict=True))
            boundary = math.exp(top.boundary_logprobs[t - 1])
            if given_boundary:
                likely = {id_: p / boundary for id_, p in likely.items() if begins_word(teacher, id_)}
            target = placed(likely, teacher, student, by_prefix_alone=not given_boundary)
            if target:
                targets[s] = target
    return targets


def begins_word(view: ByteView, id_: int) -> bool:
    return id_ == SPECIAL or view.spelling[id_][:1].isspace()


def longest(text: bytes, view: ByteView) -> int | None:
    """The longest ordinary token that a text begins with; the lowest of several."""
    found = [id_ for id_ in range(1, view.size) if view.spelling[id_] and text.startswith(view.spelling[id_])]
    return min(found, key=lambda id_: (-view.lengths[id_], id_)) if found else None


def placed(likely: Mapping[int, float], teacher: ByteView, student: ByteView, *, by_prefix_alone: bool) -> Target:
    """Each token's probability on the student token that all texts begin with which the teacher begins with it."""
    possible = {
        id_: {SPECIAL}
        if id_ == SPECIAL
        else {longest(teacher.spelling[id_], student)}
        | {
            other
            for other in range(1, student.size)
            if not by_prefix_alone
            and student.lengths[other] > teacher.lengths[id_]
            and longest(student.spelling[other], teacher) == id_
        }
        for id_ in likely
    }
    target: Target = {}
    for token in {token for tokens in possible.values() for token in tokens if token is not None}:
        own = sum(p for id_, p in likely.items() if possible[id_] == {token})
        doubtful = sum(p for id_, p in likely.items() if token in possible[id_] and len(possible[id_]) > 1)
        if own >= LEAST_PROBABILITY and doubtful <= MOST_DOUBTFUL * own:
            target[token] = own
    return target


def by_token(targets: PrefixTargets) -> dict[int, Target]:
    entries = zip(targets.ids.tolist(), targets.probabilities.tolist(), strict=True)
    return {
        token: dict(next(entries) for _ in range(size))
        for token, size in zip(targets.tokens.tolist(), targets.sizes.tolist(), strict=True)
    }


def table_of(case: Case) -> PrefixTable:
    return prefix_table(case.teacher, case.student, {SPECIAL: SPECIAL})


LETTERS = b" ab"
SPELLINGS = st.lists(st.text(" ab", min_size=2, max_size=4).map(str.encode), max_size=9, unique=True)


def vocabulary(spellings: list[bytes]) -> ByteView:
    return view_of([b"<s>", *(bytes([letter]) for letter in LETTERS), *spellings])


@given(
    teacher=SPELLINGS,
    student=SPELLINGS,
    text=st.text(" ab", min_size=1, max_size=14).map(str.encode),
    ranks=st.integers(1, 6),
    learned=st.lists(st.booleans(), min_size=1, max_size=5),
    given_boundary=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_targets_are_those_of_the_definition(
    teacher: list[bytes],
    student: list[bytes],
    text: bytes,
    ranks: int,
    learned: list[bool],
    given_boundary: bool,
    seed: int,
) -> None:
    case, random = Case(vocabulary(teacher), vocabulary(student), text), np.random.default_rng(seed)
    ranks, tokens = min(ranks, case.teacher.size), len(case.ids[0])
    logits = random.normal(size=(tokens, case.teacher.size)) * 3
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logprobs)[:, :ranks]
    boundary = [
        np.log(sum(math.exp(row[id_]) for id_ in range(len(row)) if begins_word(case.teacher, id_))) for row in logprobs
    ]
    likely = np.take_along_axis(logprobs, order, -1).astype(np.float32)
    top = TopTokens(order.ravel().astype(np.int32), likely.ravel(), np.array(boundary, np.float32))
    targets = prefix_targets(case.chunks(learned), top, table_of(case), given_boundary=given_boundary)
    expected, got = defined(case, top, ranks, learned, given_boundary), by_token(targets)
    assert got.keys() == expected.keys()
    for token, target in expected.items():
        assert got[token] == pytest.approx(target, rel=1e-5, abs=1e-9)


@given(spellings=SPELLINGS, text=st.text(" ab", min_size=1, max_size=14).map(str.encode), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_with_the_teachers_own_tokenizer_the_target_is_its_distribution(
    spellings: list[bytes], text: bytes, seed: int
) -> None:
    case = Case(vocabulary(spellings), vocabulary(spellings), text)
    tokens, ranks = len(case.ids[0]), 3
    random = np.random.default_rng(seed)
    ids = np.array([random.permutation(case.teacher.size)[:ranks] for _ in range(tokens)], np.int32)
    probabilities = random.dirichlet(np.full(ranks + 1, 5.0), tokens)[:, :ranks].astype(np.float32)
    top = TopTokens(ids.ravel(), np.log(probabilities).ravel(), np.zeros(tokens, np.float32))
    got = by_token(
        prefix_targets(case.chunks([True]), top, prefix_table(case.teacher, case.student, {SPECIAL: SPECIAL}))
    )
    assert list(got) == list(range(1, tokens))
    for token, target in got.items():
        likely = dict(zip(ids[token - 1].tolist(), probabilities[token - 1].tolist(), strict=True))
        assert target == pytest.approx(likely, rel=1e-5)


TEXTS = {
    b" aab ba": 0.3,
    b" aab bb": 0.1,
    b" aa ba": 0.2,
    b" ab bab": 0.15,
    b" abab ba": 0.15,
    b" ba ba": 0.05,
    b" aab aab": 0.05,
}
"""a distribution over all texts that there are"""


def exact(view: ByteView, before: Sequence[int]) -> np.ndarray:
    """The probability of each next token in the text after these, of the exact model over the canonical tokens."""
    probabilities = np.zeros(view.size)
    for text, probability in TEXTS.items():
        ids = [*tokenized(text, view), SPECIAL]
        if ids[: len(before)] == list(before):
            probabilities[ids[len(before)]] += probability
    return probabilities / probabilities.sum()


PAIRS = {
    "subwords": ([b" a", b" aa", b" ba", b" b", b"ab"], [b" aab", b" b", b"ba", b" ab"]),
    "longer for the student": ([b" a", b" b", b" ab", b" ba"], [b" aab", b" ab", b" bab"]),
    "bytes for the student": ([b" aab", b" ba", b"ab"], []),
    "the same": ([b" aa", b" b"], [b" aa", b" b"]),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_gradient_is_zero_at_the_truth(pair: str) -> None:
    """Two exact models of one distribution, after the end of a word: no token of the student is pulled anywhere."""
    compared, (teacher, student) = 0, map(vocabulary, PAIRS[pair])
    for text in TEXTS:
        case = Case(teacher, student, text)
        teacher_ids, student_ids = case.ids
        with np.errstate(divide="ignore"):
            rows = [np.log(exact(case.teacher, teacher_ids[: k + 1])) for k in range(len(teacher_ids))]
        words = [begins_word(case.teacher, id_) for id_ in range(case.teacher.size)]
        boundary = np.array([np.logaddexp.reduce(row[words]) for row in rows], np.float32)
        ids = np.tile(np.arange(case.teacher.size, dtype=np.int32), len(rows))
        top = TopTokens(ids, np.concatenate(rows).astype(np.float32), boundary)
        targets = prefix_targets(case.chunks([True]), top, table_of(case), given_boundary=True)
        for token, target in by_token(targets).items():
            truth = exact(case.student, student_ids[:token])
            gradient = gradient_at(truth, target, case.student)
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)
            assert sum(target.values()) > 0.04
            # it is not zero elsewhere
            assert gradient_at(truth + 0.3 / len(truth), target, case.student).abs().max() > 1e-3
            compared += 1
    assert compared > 5


def test_what_the_student_says_by_a_longer_token_is_left_to_the_residual() -> None:
    """A teacher that writes digit by digit can't tell which of the student's numbers follows."""
    spaced, digits = ([f"{space}{number}".encode() for number in range(100)] for space in (" ", ""))
    teacher, student = view_of([b"<s>", *spaced[:10], *digits[:10]]), view_of([b"<s>", *spaced])
    case = Case(teacher, student, b" 42 1")
    assert case.ids == ([0, 5, 13, 2], [0, 43, 2])
    ids, logprobs = np.tile(np.arange(1, 11, dtype=np.int32), 4), np.full(40, np.log(0.1), np.float32)
    top = TopTokens(ids, logprobs, np.zeros(4, np.float32))
    for given_boundary, size in ((True, 1), (False, 10)):
        targets = prefix_targets(case.chunks([True]), top, table_of(case), given_boundary=given_boundary)
        # no number of two digits begins with 0
        assert [list(target) for target in by_token(targets).values()] == [[*range(1, size + 1)]] * 2


def gradient_at(probabilities: np.ndarray, target: Target, view: ByteView) -> torch.Tensor:
    """Of the loss with respect to the logits of a student that gives these probabilities."""
    logits = torch.tensor(np.log(np.maximum(probabilities, 1e-30)), dtype=torch.float32)[None].requires_grad_()
    boundary = torch.tensor([id_ for id_ in range(view.size) if begins_word(view, id_)])
    ids, values = torch.tensor([list(target)]), torch.tensor([list(target.values())])
    head = Head(torch.eye(view.size))
    numbers = next_token(logits, torch.zeros(1, dtype=torch.int64), head, boundary, listed=ListedTokens(ids, True))
    assert numbers.listed_logprobs_NL is not None
    assert numbers.unlisted_logprobs_N is not None
    listed, rest = numbers.listed_logprobs_NL, numbers.unlisted_logprobs_N
    loss = bpm_loss(listed, rest, values, normalizer_N=numbers.boundary_logprobs_N)
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


@pytest.mark.bad_input
def test_a_vocabulary_that_does_not_cover_white_space_is_refused() -> None:
    plain, words = view_of([b"<s>", b"a"]), view_of([b"<s>", b"a"], drops_space=True)
    for side, pair in (("teacher", (words, plain)), ("student", (plain, words))):
        with pytest.raises(UserError, match=f"no token of the {side}'s tokenizer covers the white space"):
            prefix_table(*pair, {})


@pytest.mark.bad_input
def test_scores_or_ids_of_other_tokens_are_refused() -> None:
    case = Case(vocabulary([]), vocabulary([]), b"ab")
    chunks, table = case.chunks([True]), prefix_table(case.teacher, case.student, {})
    ids, logprobs, boundary = np.ones(6, np.int32), np.zeros(6, np.float32), np.zeros(3, np.float32)
    assert len(prefix_targets(chunks, TopTokens(ids, logprobs, boundary), table).tokens) == 2
    for top in (TopTokens(ids[:5], logprobs[:5], boundary), TopTokens(ids, logprobs, boundary[:2])):
        with pytest.raises(ValueError, match="of other tokens"):
            prefix_targets(chunks, top, table)
    with pytest.raises(ValueError, match="the size of its vocabulary"):
        prefix_targets(chunks, TopTokens(ids + 9, logprobs, boundary), table)
    wrong = chunks._replace(teacher_tokens=chunks.teacher_tokens + 1)
    with pytest.raises(ValueError, match="example 0 have other tokens"):
        prefix_targets(wrong, TopTokens(ids, logprobs, boundary), table)


def test_a_special_token_goes_to_its_counterpart_or_nowhere() -> None:
    teacher, student = view_of([b"<s>", b"a", b"<end>"]), view_of([b"<eos>", b"a", b"<end>"])
    teacher.special[2] = True
    for specials, prefix in (({2: 0}, 0), ({}, -1)):
        assert prefix_table(teacher, student, specials).teacher.prefix[2] == prefix
    # one without a row in the head
    assert prefix_table(teacher, student, {2: 2}, student_rows=2).teacher.prefix.tolist() == [-1, 1, -1]
