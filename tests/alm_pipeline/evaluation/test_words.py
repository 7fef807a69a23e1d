"""The distance to the teacher per word, checked against a loop over the definition."""

import math
from pathlib import Path

import numpy as np
import pytest

from alm_pipeline.config import AlmConfig
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.evaluation.words import Words
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.scorer import Scorer, TokenScores
from storage.columns import list_rows
from storage.schemas import ChunkEnd, ChunkKind


@pytest.fixture(scope="module")
def finished(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = Pipeline(config, str(tmp_path_factory.mktemp("words")))
    pipeline.run()
    return pipeline


def token_scores(logprobs: np.ndarray, boundary: np.ndarray) -> TokenScores:
    return TokenScores(
        logprobs, boundary, np.zeros((len(logprobs), 0), np.int32), np.zeros((len(logprobs), 0), np.float32)
    )


def loop_kl(held_out: HeldOut, student: list[TokenScores]) -> list[float]:
    """The oracle: D at every anchor, and the divergence of each difference of two that follow one another."""
    found = []
    names = ("teacher_tokens", "student_tokens", "kinds", "ends")
    chunks = [held_out.column("alignments", name) for name in names]
    teacher = [
        token_scores(*row)
        for row in zip(*(held_out.column("scores", n) for n in ("logprobs", "boundary_logprobs")), strict=True)
    ]
    for sides, (left, right), kinds, ends in zip(
        zip(teacher, student, strict=True), zip(chunks[0], chunks[1], strict=True), chunks[2], chunks[3], strict=True
    ):
        at, previous = [0, 0], None
        for chunk, (kind, end) in enumerate(zip(kinds, ends, strict=True)):
            at = [place + int(counts[chunk]) for place, counts in zip(at, (left, right), strict=True)]
            surely = kind != ChunkKind.CONTENT
            if not surely and end != ChunkEnd.ANCHOR and chunk + 1 < len(kinds):
                continue
            sums = [
                float(np.nansum(side.logprobs[:place].astype(np.float64)))
                for side, place in zip(sides, at, strict=True)
            ]
            after = [
                0.0 if surely else float(side.boundary_logprobs[place - 1])
                for side, place in zip(sides, at, strict=True)
            ]
            here = [total + boundary for total, boundary in zip(sums, after, strict=True)]
            if previous is not None and kind != ChunkKind.UNPAIRED:
                a, b = (min(now - before, 0) - 1e-6 for now, before in zip(here, previous, strict=True))
                p, q = math.exp(a), math.exp(b)
                found.append(p * (a - b) + (1 - p) * (math.log1p(-p) - math.log1p(-q)))
            # the first token of a side has no prediction
            previous = here if all(at) else None
    return found


def test_the_distance_is_the_loop(finished: Pipeline) -> None:
    held_out = finished.distillation.held_out
    scorer = Scorer.of(finished.distillation.initial_student()[0], finished.student_tokenizer)
    student = held_out.student.score(scorer)
    expected = loop_kl(held_out, student)
    assert len(expected) > 100
    np.testing.assert_allclose(held_out.words.kl(student), expected, rtol=1e-4, atol=1e-9)
    distance = held_out.words.distance(student, held_out.documents)
    assert distance
    assert distance.kl == pytest.approx(np.mean(expected), rel=1e-5)
    assert distance.standard_error
    manifest = finished.student.manifest()
    assert manifest
    assert manifest.results["held_out_word_kl"]["student_before"] == pytest.approx(distance.kl, rel=1e-5)


def test_the_teacher_is_at_distance_zero_from_itself(config: AlmConfig, tmp_path: Path) -> None:
    student = config.student.model_copy(update={"model": config.teacher, "tokenizer": None})
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path))
    pipeline.cache()
    held_out = HeldOut.read(pipeline.caches)
    rows = zip(*(list_rows(held_out.drawn["scores"][name]) for name in ("logprobs", "boundary_logprobs")), strict=True)
    distance = held_out.words.distance([token_scores(*row) for row in rows], held_out.documents)
    assert distance
    assert distance.kl == pytest.approx(0, abs=1e-9)


def test_without_boundary_tokens_there_is_no_distance(finished: Pipeline) -> None:
    held_out = finished.distillation.held_out
    scores = [
        token_scores(np.full(len(ids), -1, np.float32), np.full(len(ids), -np.inf, np.float32))
        for ids in held_out.student.ids
    ]
    assert held_out.words.distance(scores, held_out.documents) is None
    table = held_out.drawn["scores"]
    column = table["boundary_logprobs"].combine_chunks()
    nothing = type(column).from_arrays(column.offsets, np.full(len(column.flatten()), -np.inf, np.float32))
    place = table.column_names.index("boundary_logprobs")
    without = {**held_out.drawn, "scores": table.set_column(place, "boundary_logprobs", nothing)}
    assert len(Words.of(without, assistant_only=False).chunks.logprobs) == 0
