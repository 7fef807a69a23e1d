"""Merging, checked against a loop over chunks and tokens."""

import itertools
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.config import Debias
from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks
from alm_pipeline.objective.chunking.merging import FARTHEST_ANCHOR, merged_chunks
from storage.errors import UserError
from storage.schemas import ChunkEnd, ChunkKind

logprob = st.floats(-200.0, -1e-4)
gammas = st.sampled_from([None, 0.0, 0.1, 0.5, 1.0])
debiasings = st.sampled_from(get_args(Debias))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, np.ndarray]:
    kinds = draw(st.lists(st.sampled_from(list(ChunkKind)), min_size=1, max_size=12))
    least = [0 if kind == ChunkKind.UNPAIRED else 1 for kind in kinds]
    # some are so long that they are far from an anchor
    teacher, student = ([draw(st.integers(low, 3) | st.just(FARTHEST_ANCHOR)) for low in least] for _ in range(2))
    tokens = sum(teacher)
    logprobs = np.array(draw(st.lists(logprob, min_size=tokens, max_size=tokens)), dtype=np.float32)
    if tokens:
        logprobs[0] = np.nan
    boundary = np.array(draw(st.lists(st.floats(-6, 0), min_size=tokens, max_size=tokens)), dtype=np.float32)
    return {
        "teacher_tokens": np.array(teacher, dtype=np.int64),
        "student_tokens": np.array(student, dtype=np.int64),
        "kinds": np.array(kinds, dtype=np.uint8),
        "ends": np.array([draw(st.integers(0, 3)) for _ in kinds], dtype=np.uint8),
        "learned": np.array([draw(st.sampled_from([True, True, False])) for _ in kinds], dtype=np.bool_),
        "logprobs": logprobs,
        "boundary_logprobs": boundary,
    }


def loop_merged(
    case: dict[str, np.ndarray], gamma: float | None, debias: Debias, closes: list[bool] | None = None
) -> list[tuple[float, int, int, int]]:
    """The oracle, chunk by chunk, token by token: likelihood, first and last student token, merged chunks."""
    found: list[tuple[float, int, int, int]] = []
    group: list[int] = []
    teacher = student = 0
    spans = []
    for n_teacher, n_student in zip(case["teacher_tokens"], case["student_tokens"], strict=True):
        spans.append((teacher, teacher + n_teacher, student, student + n_student))
        teacher, student = teacher + n_teacher, student + n_student

    def close() -> None:
        if group and not any(map(lacks_prediction, group)):
            anchor = anchor_of(group[0]) if debias == "both" else (group[0], False)
            if anchor is not None:
                start, divided = anchor
                tokens = [float(case["logprobs"][i]) for i in range(spans[start][0], spans[group[-1]][1])]
                multiplied = debias == "end" or (debias == "both" and case["kinds"][group[-1]] != ChunkKind.PAIRED)
                after = float(case["boundary_logprobs"][spans[group[-1]][1] - 1]) if multiplied else 0.0
                before = float(case["boundary_logprobs"][spans[start][0] - 1]) if divided else 0.0
                value = min(math.fsum([*tokens, after, -before]), 0)
                found.append((value, spans[start][2], spans[group[-1]][3], len(group)))
        group.clear()

    def anchor_of(first: int) -> tuple[int, bool] | None:
        """The chunk that a group beginning with `first` is counted from, and whether P(boundary) before it counts."""
        for k in range(first, 0, -1):
            is_exact = case["kinds"][k - 1] != ChunkKind.CONTENT or case["ends"][k - 1] == ChunkEnd.ANCHOR
            if is_exact or not learned(k - 1):
                if spans[first][0] - spans[k][0] > FARTHEST_ANCHOR:
                    return first, False
                return k, bool(is_exact and case["kinds"][k - 1] == ChunkKind.CONTENT)
            if lacks_prediction(k - 1):
                break
        return (first, False) if spans[first][0] > FARTHEST_ANCHOR else None

    def learned(k: int) -> bool:
        return not len(case["learned"]) or bool(case["learned"][k])

    def lacks_prediction(k: int) -> bool:
        teacher_start, teacher_end, student_start, student_end = spans[k]
        # the first token of a sequence has none
        return 0 in (*range(teacher_start, teacher_end), *range(student_start, student_end))

    for k, kind in enumerate(case["kinds"]):
        if kind == ChunkKind.UNPAIRED or not learned(k):
            close()
            continue
        if kind == ChunkKind.PAIRED and lacks_prediction(k):
            continue  # the condition of the group that begins after it
        group.append(k)
        waits = closes is not None and spans[k][1] - spans[group[0]][0] <= FARTHEST_ANCHOR
        boundary = math.exp(case["boundary_logprobs"][spans[k][1] - 1])
        by_gamma = boundary > gamma if gamma is not None else closes is None
        if (closes and closes[k]) or (by_gamma and not waits):
            close()
    close()
    return found


def chunks_of(
    examples: list[dict[str, np.ndarray]], gamma: float | None, debias: Debias, closes: list[bool] | None = None
) -> TeacherChunks:
    """`merged_chunks` of all examples at once."""
    columns = {name: np.concatenate([example[name] for example in examples]) for name in examples[0]}
    columns.setdefault("ends", np.zeros(len(columns["kinds"]), np.uint8))
    columns.setdefault("learned", np.zeros(0, np.bool_))
    offsets = [
        np.cumsum([0, *(len(example[name]) for example in examples)], dtype=np.int64) for name in ("kinds", "logprobs")
    ]
    scores = AlignedScores(chunk_offsets=offsets[0], token_offsets=offsets[1], **columns)
    ends = None if closes is None else np.array(closes, np.bool_)
    return merged_chunks(scores, gamma=gamma, debias=debias, closes=ends)


def merged(*arguments: Any) -> list[list[tuple[float, ...]]]:
    """The rows of `chunks_of` by example: likelihood, first and last student token."""
    chunks = chunks_of(*arguments)
    rows = [chunks.logprobs.tolist(), chunks.student_starts.tolist(), chunks.student_ends.tolist()]
    assert len(rows[0]) == len(rows[1]) == len(rows[2]) == chunks.offsets[-1]
    found = list(zip(*rows, strict=True))
    return [found[start:end] for start, end in itertools.pairwise(chunks.offsets.tolist())]


def assert_are(examples: list[dict[str, np.ndarray]], expected: list[list[tuple[float, ...]]], *rest: Any) -> None:
    for got, rows in zip(merged(examples, *rest), expected, strict=True):
        assert [row[1:] for row in got] == [row[1:3] for row in rows]
        np.testing.assert_allclose([row[0] for row in got], [row[0] for row in rows], rtol=1e-5)
    chunks = chunks_of(examples, *rest)
    assert chunks.used.tolist() == [sum(int(row[3]) for row in rows) for rows in expected]
    is_aligned = [(example["kinds"] != ChunkKind.UNPAIRED) & example["learned"] for example in examples]
    assert chunks.aligned.tolist() == [int(of.sum()) for of in is_aligned]


@settings(deadline=None)  # the first call compiles
@given(examples=st.lists(cases(), min_size=1, max_size=4), gamma=gammas, debias=debiasings)
def test_merging_is_the_loop(examples: list[dict[str, np.ndarray]], gamma: float | None, debias: Debias) -> None:
    assert_are(examples, [loop_merged(example, gamma, debias) for example in examples], gamma, debias)


@settings(deadline=None)
@given(examples=st.lists(cases(), min_size=1, max_size=4), gamma=gammas, debias=debiasings, data=st.data())
def test_merging_to_given_ends_is_the_loop(
    examples: list[dict[str, np.ndarray]], gamma: float | None, debias: Debias, data: st.DataObject
) -> None:
    """With γ too, which closes groups that have waited too long for a given end."""
    closes = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in (len(e["kinds"]) for e in examples)]
    expected = [loop_merged(example, gamma, debias, ends) for example, ends in zip(examples, closes, strict=True)]
    assert_are(examples, expected, gamma, debias, list(itertools.chain(*closes)))


def test_an_example_without_chunks_has_none_whatever_its_scores() -> None:
    """One that the student could not tokenize still has teacher scores."""
    none = {"teacher_tokens": np.zeros(0, np.int32), "student_tokens": np.zeros(0, np.int32)}
    dropped = {**none, "kinds": np.zeros(0, np.uint8)}
    scores = {"logprobs": np.float32([-1, -2]), "boundary_logprobs": np.float32([-1, -1])}
    one = {"teacher_tokens": np.array([1, 1]), "student_tokens": np.array([1, 2]), "kinds": np.uint8([0, 0])}
    rows = merged([{**dropped, **scores}, {**one, **scores}], None, "none")
    assert rows == [[], [(-2.0, 1, 3)]]


@settings(deadline=None)
@given(example=cases(), missing=st.booleans())
def test_other_scores_than_the_chunks_are_refused(example: dict[str, np.ndarray], missing: bool) -> None:
    for name in ("logprobs", "boundary_logprobs"):
        example[name] = example[name][:-1] if missing and len(example[name]) else np.append(example[name], -1)
    with pytest.raises(ValueError, match="example 0 have different teacher tokens"):
        merged([example], 0.1, "end")


@settings(deadline=None)
@given(case=cases())
def test_gamma_zero_is_unconstrained(case: dict[str, np.ndarray]) -> None:
    assert merged([case], 0.0, "end") == merged([case], None, "end")


CONTENT, PAIRED, UNPAIRED = ChunkKind.CONTENT, ChunkKind.PAIRED, ChunkKind.UNPAIRED


@pytest.mark.parametrize(
    ("chunks", "first_teacher_token", "student_tokens"),
    [
        pytest.param([(PAIRED, 1, 1), (CONTENT, 2, 1), (CONTENT, 1, 2)], 1, (1, 4), id="begin of text on both sides"),
        pytest.param([(PAIRED, 2, 1), (CONTENT, 1, 1), (CONTENT, 1, 1)], 2, (1, 3), id="of two tokens on one side"),
        pytest.param([(PAIRED, 1, 1), (UNPAIRED, 3, 0), (CONTENT, 1, 2)], 4, (1, 3), id="then scaffold of one side"),
        pytest.param([(UNPAIRED, 1, 0), (PAIRED, 1, 1), (CONTENT, 1, 1)], 2, (1, 2), id="the teacher's, then a turn"),
        pytest.param([(UNPAIRED, 0, 1), (PAIRED, 1, 1), (CONTENT, 1, 1)], 1, (2, 3), id="the student's, then a turn"),
        pytest.param([(UNPAIRED, 1, 0), (CONTENT, 1, 1), (CONTENT, 1, 1)], 0, None, id="the teacher's, then words"),
        pytest.param([(UNPAIRED, 0, 1), (CONTENT, 1, 1), (CONTENT, 1, 1)], 0, None, id="the student's, then words"),
        pytest.param([(UNPAIRED, 1, 1), (CONTENT, 1, 1), (CONTENT, 1, 1)], 1, (1, 3), id="both, without a pair"),
        pytest.param([(CONTENT, 1, 1), (CONTENT, 1, 1)], 0, None, id="none"),
        pytest.param([(PAIRED, 1, 1)], 0, None, id="nothing after it"),
    ],
)
def test_a_group_begins_after_a_paired_opening(
    chunks: list[tuple[ChunkKind, int, int]], first_teacher_token: int, student_tokens: tuple[int, int] | None
) -> None:
    """The teacher expects no boundary before the last chunk, so everything after the opening is one group."""
    kinds, teacher, student = zip(*chunks, strict=True)
    logprobs = -np.arange(sum(teacher), dtype=np.float32)
    logprobs[:1] = np.nan
    case = {
        "teacher_tokens": np.array(teacher),
        "student_tokens": np.array(student),
        "kinds": np.array(kinds, np.uint8),
        "logprobs": logprobs,
        "boundary_logprobs": np.full(sum(teacher), -9, np.float32),
    }
    expected = [(float(logprobs[first_teacher_token:].sum()), *student_tokens)] if student_tokens else []
    assert merged([case], 0.1, "none") == [expected]


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["logprobs", "boundary_logprobs"])
@pytest.mark.parametrize("gamma", [None, 0.1])
def test_a_likelihood_that_is_not_finite_is_refused(column: str, value: float, gamma: float | None) -> None:
    good = {
        "teacher_tokens": np.array([1, 1, 1]),
        "student_tokens": np.array([1, 1, 1]),
        "kinds": np.zeros(3, np.uint8),
        "logprobs": np.float32([np.nan, -1, -1]),
        "boundary_logprobs": np.float32([-1, -1, -1]),
    }
    assert len(chunks_of([good, good], gamma, "end").logprobs) == 4
    bad = {**good, column: good[column].copy()}
    bad[column][2] = value
    with pytest.raises(UserError, match=f"a chunk of example 1 .* is {value}.*objective.debias.*damaged"):
        chunks_of([good, bad], gamma, "end")


WORDS = {
    "teacher_tokens": np.array([1, 1, 2, 1, 1, 1]),
    "student_tokens": np.array([1, 2, 1, 1, 1, 1]),
    "logprobs": np.float32([np.nan, -1, -2, -4, -8, -16, -32]),
    "boundary_logprobs": np.float32([0, -0.25, -0.5, -0.125, -0.0625, -0.75, -0.375]),
}
FROM_TEXT = [PAIRED, CONTENT, CONTENT, CONTENT, CONTENT, CONTENT]
OPEN, ANCHOR = 0, ChunkEnd.ANCHOR


@pytest.mark.parametrize(
    ("kinds", "ends", "learned", "expected"),
    [
        pytest.param(
            FROM_TEXT,
            [OPEN, OPEN, ANCHOR, OPEN, OPEN, OPEN],
            [],
            # counted from the begin of text, and from the end of the first word on from there
            [(-1.25, 1, 3), (-7.125, 1, 4), (-7.9375, 4, 5), (-24.625, 4, 6), (-56.25, 4, 7)],
            id="anchored at the begin of text and at the end of a word",
        ),
        pytest.param(
            [CONTENT, CONTENT, CONTENT, CONTENT, CONTENT, CONTENT],
            [OPEN, OPEN, ANCHOR, OPEN, OPEN, OPEN],
            [],
            [(-7.9375, 4, 5), (-24.625, 4, 6), (-56.25, 4, 7)],
            id="without a begin of text, nothing counts before the first word's end",
        ),
        pytest.param(
            [PAIRED, CONTENT, CONTENT, UNPAIRED, CONTENT, PAIRED],
            [OPEN, OPEN, OPEN, OPEN, OPEN, OPEN],
            [],
            # a paired chunk surely ends there: P(boundary) after it does not count
            [(-1.25, 1, 3), (-7.125, 1, 4), (-16.75, 5, 6), (-48, 5, 7)],
            id="a template's part begins a new anchor",
        ),
        pytest.param(
            FROM_TEXT,
            [OPEN, OPEN, OPEN, OPEN, OPEN, OPEN],
            [True, False, False, True, True, True],
            [(-8.0625, 4, 5), (-24.75, 4, 6), (-56.375, 4, 7)],
            id="what is not learned is not counted along",
        ),
        pytest.param(
            FROM_TEXT,
            [OPEN, OPEN, ANCHOR, OPEN, OPEN, OPEN],
            [True, False, False, True, True, True],
            [(-7.9375, 4, 5), (-24.625, 4, 6), (-56.25, 4, 7)],
            id="an anchor right before what is learned",
        ),
    ],
)
def test_debiased_at_both_ends(
    kinds: list[int], ends: list[int], learned: list[bool], expected: list[tuple[float, int, int]]
) -> None:
    """Worked out by hand; every chunk is a group of its own."""
    case = {**WORDS, "kinds": np.uint8(kinds), "ends": np.uint8(ends), "learned": np.array(learned, np.bool_)}
    assert merged([case], None, "both") == [expected]


@pytest.mark.parametrize("tokens", [FARTHEST_ANCHOR, FARTHEST_ANCHOR + 1])
def test_a_long_text_without_an_anchor_is_learned_all_the_same(tokens: int) -> None:
    """A script without white space, and tokenizers without a begin of text."""
    case = {
        "teacher_tokens": np.array([tokens, 1]),
        "student_tokens": np.array([1, 1]),
        "kinds": np.uint8([CONTENT, CONTENT]),
        "logprobs": np.full(tokens + 1, -1, np.float32),
        "boundary_logprobs": np.full(tokens + 1, -0.5, np.float32),
    }
    case["logprobs"][0] = np.nan
    assert merged([case], None, "both") == [[(-1.5, 1, 2)] if tokens > FARTHEST_ANCHOR else []]


@pytest.mark.parametrize("tokens", [FARTHEST_ANCHOR, FARTHEST_ANCHOR + 1])
def test_a_group_far_from_an_anchor_is_counted_from_its_own_start(tokens: int) -> None:
    """A text without white space: of its last chunk alone, or of all since the begin of text."""
    case = {
        "teacher_tokens": np.array([1, tokens, 1]),
        "student_tokens": np.array([1, 1, 1]),
        "kinds": np.uint8([PAIRED, CONTENT, CONTENT]),
        "logprobs": np.full(tokens + 2, -1, np.float32),
        "boundary_logprobs": np.full(tokens + 2, -0.5, np.float32),
    }
    case["logprobs"][0] = np.nan
    is_far = tokens > FARTHEST_ANCHOR
    last = (-1.5, 2, 3) if is_far else (-1.5 - tokens, 1, 3)
    assert merged([case], None, "both") == [[(-0.5 - tokens, 1, 2), last]]
