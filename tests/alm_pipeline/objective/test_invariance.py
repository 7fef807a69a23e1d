"""Two exact token models of one distribution of texts: which chunks have the same likelihood under both?

A chunk that is debiased at both ends has, whatever the tokenizer; one that is debiased at its end, as published, has
not, and neither has one that is not debiased. First from the definition, in float64, and then through the pipeline.
"""

import itertools
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from alm_pipeline.config import Chunking, Debias, ObjectiveConfig, TrainConfig
from alm_pipeline.objective.chunking.registry import CHUNKINGS
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.data.batch_stream import BatchStream
from tests.exact_store import IMPOSSIBLE, exact_pipeline, scored_batch
from tests.exact_words import SPACE_PIECES, Floats, Numbers, TokenModel, drawn_words, trained_tokenizer

WORDS = drawn_words(1000)
RUNS = drawn_words(1000, seed=1, runs=0.3)


class Pair(NamedTuple):
    """Two exact models of one distribution, by tokenizers of many and of few tokens."""

    teacher: TokenModel
    student: TokenModel


@pytest.fixture(scope="module", params=["words", "runs"])
def models(request: pytest.FixtureRequest) -> Pair:
    words = {"words": WORDS, "runs": RUNS}[request.param]
    return Pair(*(TokenModel(words, trained_tokenizer(words, size)) for size in (800, 340)))


class CommonEnds(NamedTuple):
    """The places of a text where tokens of both sides end, and both sides' numbers there."""

    teacher: Numbers
    student: Numbers
    teacher_at: npt.NDArray[np.int64]
    student_at: npt.NDArray[np.int64]
    is_anchor: npt.NDArray[np.bool_]
    """whether white space follows in the text, and none stands before"""
    in_run: npt.NDArray[np.bool_]
    """whether white space stands before: how a run of it is cut depends on what follows"""


def common_ends(models: Pair, indices: list[int]) -> CommonEnds:
    teacher, student = (model.numbers(model.ids(indices)) for model in models)
    text = models.teacher.words.text(indices).encode()
    places, teacher_at, student_at = np.intersect1d(teacher.byte_ends, student.byte_ends, return_indices=True)
    is_space = np.array([byte in b" \n\t" for byte in text] + [False])
    in_run = is_space[places - 1]
    return CommonEnds(teacher, student, teacher_at, student_at, is_space[places] & ~in_run, in_run)


def test_the_models_are_exact(models: Pair) -> None:
    """What a text has as its probability is the product of its words', under either tokenizer."""
    indices = models.teacher.words.draw(50, np.random.default_rng(0))
    words = np.log(models.teacher.words.probabilities)
    for model in models:
        # the last word ends where a boundary follows
        assert model.numbers(model.ids(indices)).with_boundary[-1] == pytest.approx(words[indices].sum(), abs=1e-9)


GAMMAS = {"unconstrained": 0.0, "gamma": 0.1, "likely ends": 0.5}


@pytest.mark.parametrize("gamma", GAMMAS.values(), ids=GAMMAS)
def test_chunks_of_both_ends_are_the_same_under_both_tokenizers(models: Pair, gamma: float) -> None:
    at = common_ends(models, models.teacher.words.draw(3000, np.random.default_rng(0)))
    # unconstrained: a boundary may follow on both sides, so that the likelihoods are finite
    closes = np.exp(at.teacher.boundary_logprobs[at.teacher_at]) > gamma
    chosen = np.flatnonzero(closes)
    differences = {form: np.abs(np.subtract(*likelihoods(at, chosen, form))) for form in ("none", "end")}
    assert differences["none"].mean() > 0.02
    assert differences["end"].mean() > 0.02
    ends = anchored_ends(at, chosen)
    assert len(ends) > 0.9 * np.count_nonzero(~at.in_run[chosen])
    teacher, student = likelihoods_from_anchors(at, ends)
    np.testing.assert_allclose(teacher, student, rtol=0, atol=1e-9)
    assert teacher.max() <= 1e-9


def likelihoods(at: CommonEnds, chosen: npt.NDArray[np.int64], form: str) -> tuple[Floats, Floats]:
    """Return both sides' likelihoods of the chunks between neighboring chosen places, by `none` or `end`."""
    sides = []
    for numbers, places in ((at.teacher, at.teacher_at), (at.student, at.student_at)):
        values = np.diff(numbers.cumulative[places[chosen]])
        sides.append(values + numbers.boundary_logprobs[places[chosen[1:]]] if form == "end" else values)
    return sides[0], sides[1]


def anchored_ends(at: CommonEnds, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[chunks, 2] the anchor and the end of each chunk that the identity holds for."""
    pairs, before = list[tuple[int, int]](), -1
    for start, end in zip([-1, *chosen], chosen, strict=False):
        # the last anchor at or before the place where the chunk begins
        anchors = np.flatnonzero(at.is_anchor[: start + 1]) if start >= 0 else []
        before = int(anchors[-1]) if len(anchors) else -1
        if before >= 0 and not at.in_run[end]:
            pairs.append((before, int(end)))
    return np.array(pairs)


def likelihoods_from_anchors(at: CommonEnds, ends: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    teacher, student = at.teacher.with_boundary[at.teacher_at], at.student.with_boundary[at.student_at]
    first, last = ends.T
    return teacher[last] - teacher[first], student[last] - student[first]


@pytest.fixture(scope="module")
def pipeline(models: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    random = np.random.default_rng(1)
    texts = [models.teacher.words.draw(60, random) for _ in range(20)]
    return exact_pipeline(tmp_path_factory.mktemp("exact"), *models, texts)


class Likelihoods(NamedTuple):
    """Of chunks, by the two exact models, as the training has them."""

    teacher: Tensor
    """[C]"""
    student: Tensor
    """[C]"""
    holds: Tensor
    """[C] whether both ends have a meaning: no white space stands before the end, and a boundary may follow it"""

    @property
    def differences(self) -> Tensor:
        return (self.teacher - self.student).abs()[self.holds]


def trained_likelihoods(pipeline: Pipeline, models: Pair, objective: ObjectiveConfig, batches: int = 4) -> Likelihoods:
    """Return the likelihoods of the first batches: the teacher's of the stream, the student's of the loss."""
    pipeline = Pipeline(pipeline.config.model_copy(update={"objective": objective}), pipeline.root)
    pipeline.pair_biases()
    train = TrainConfig(batch_tokens=2048, row_tokens=512)
    stream = BatchStream(pipeline.caches, objective, train, ends=pipeline.distillation.chunk_ends)
    found = [_likelihoods(batch, models.student, objective) for batch in itertools.islice(stream, batches)]
    return Likelihoods(*map(torch.cat, zip(*found, strict=True)))


def _likelihoods(batch: dict[str, Tensor], student: TokenModel, objective: ObjectiveConfig) -> Likelihoods:
    scored = scored_batch(batch, student, objective)
    last = batch["token_ids_BS"].flatten()[batch["last_token_C"]].tolist()
    in_run = torch.tensor([piece[-1] in SPACE_PIECES for piece in student.tokenizer.convert_ids_to_tokens(last)])
    possible = scored.boundary_logprobs_N[batch["last_token_C"]] > IMPOSSIBLE
    return Likelihoods(scored.teacher_logprobs_C, scored.student_logprobs_C, possible & ~in_run)


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_the_training_sees_the_same_likelihoods_if_debiased_at_both_ends(
    pipeline: Pipeline, models: Pair, chunking: Chunking
) -> None:
    likelihoods = {
        form: trained_likelihoods(pipeline, models, ObjectiveConfig(chunking=chunking, debias=form))
        for form in get_args(Debias)
    }
    both = likelihoods["both"]
    assert both.holds.sum() > 300
    assert both.differences.max() < 2e-5
    assert both.teacher.max() <= 1e-5
    for form in ("none", "end"):
        assert likelihoods[form].differences.mean() > 0.01
