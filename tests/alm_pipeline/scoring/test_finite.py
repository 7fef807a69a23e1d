"""Scores that are not finite stop the stage that makes them and every reader, and never mean "has no prediction"."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from alm_pipeline.config import AlmConfig, ObjectiveConfig, ScoreConfig
from alm_pipeline.evaluation.bits_per_byte import bits_per_byte
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.finite import check_stored_scores, first_fault_of_rows
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.examples import read_examples
from storage.columns import join_rows, list_rows
from storage.dataset import Dataset
from storage.errors import UserError
from tests import tiny

FOX, TEXT = 294, "The quick brown fox jumps"


@given(st.lists(st.integers(0, 4), max_size=6), st.data())
def test_the_first_fault_is_that_of_a_loop(lengths: list[int], data: st.DataObject) -> None:
    value = st.sampled_from([-1.0, -2.0, -1.0, np.nan, np.inf, -np.inf])
    logprobs = [np.float32([np.nan, *(data.draw(value) for _ in range(length - 1))][:length]) for length in lengths]
    boundary = [np.float32([data.draw(value) for _ in range(length)]) for length in lengths]
    expected = None
    for example, length in reversed([*enumerate(lengths)]):
        for token in reversed(range(length)):
            wrong_boundary = np.isnan(boundary[example][token]) or boundary[example][token] == np.inf
            if wrong_boundary or (token and not np.isfinite(logprobs[example][token])):
                expected = (example, token, wrong_boundary)
    fault = first_fault_of_rows(logprobs, boundary)
    assert (fault and (fault.example, fault.token, "boundary" in fault.quantity)) == expected


def spoiled_embedding(model: PreTrainedModel) -> None:
    model.get_input_embeddings().weight.data[FOX] = float("inf")


def spoiled_layer(model: PreTrainedModel) -> None:
    """Only long after the probe's few tokens, whose ids are small."""
    model.model.layers[1].register_forward_hook(  # type: ignore[union-attr, operator]
        lambda _, __, states: states.masked_fill(torch.arange(states.shape[1])[:, None] >= 9, float("nan"))
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        pytest.param(
            spoiled_embedding, r"token 3, ' fox' \(id 294\): the log-probability of a boundary is nan", id="inf in"
        ),
        pytest.param(spoiled_layer, r"token 9, ' the' .*: the log-probability of a boundary is nan", id="a layer"),
    ],
)
@pytest.mark.parametrize("batch_tokens", [8, 4096])
def test_a_teacher_that_overflows_stops_with_the_token(
    spoil: Callable[[PreTrainedModel], None], named: str, batch_tokens: int
) -> None:
    tokenizer, model = LoadedTokenizer.of(tiny.byte_level_tokenizer()), tiny.tiny_llama(400, tied=False)
    scorer = Scorer.of(model, tokenizer, ScoreConfig(dtype="float32", batch_tokens=batch_tokens))
    examples = [
        np.array(tokenizer.fast.encode(text), np.int32) for text in ("The dog.", TEXT + " over the dog" * 3, "a")
    ]
    assert len(scorer.score(examples)) == 3
    spoil(model)
    with pytest.raises(UserError, match=rf"example \S+, {named}.*float32"):
        scorer.score(examples, names=["one", "two", "three"])


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_probe_that_overflows_is_not_the_architectures_fault(dtype: torch.dtype) -> None:
    tokenizer, model = LoadedTokenizer.of(tiny.byte_level_tokenizer()), tiny.tiny_llama(400, tied=False).to(dtype)
    model.get_input_embeddings().weight.data[3] = float("inf")
    with pytest.raises(
        UserError, match=r"its hidden states and logits .* NaN or infinite .*score\.dtype.*damaged"
    ) as error:
        Scorer.of(model, tokenizer)
    assert "architecture" not in str(error.value)


def test_a_vocabulary_without_boundary_tokens_is_scored() -> None:
    model = tiny.tiny_llama(300)
    (row,) = Scorer(model, HeadVocabulary(torch.zeros(0, dtype=torch.int64))).score([np.arange(5, dtype=np.int32)])
    assert row.boundary_logprobs.tolist() == [-np.inf] * 5
    assert np.isfinite(row.logprobs[1:]).all()


@pytest.fixture(scope="module")
def cached(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = Pipeline(config, str(tmp_path_factory.mktemp("cached")))
    pipeline.cache()
    return pipeline


def replaced(pipeline: Pipeline, root: Path, column: str, value: float, token: int) -> tuple[dict[str, Dataset], str]:
    """The caches with one other score in every example that has this token; returns them and the first example's id."""
    good = pipeline.scores
    scores = Dataset(str(root), good.kind, good.label, good.identity)
    shards = len(good.complete_manifest().shards)
    for shard in range(shards):
        table = good.read_shard(shard)
        rows = {name: [row.copy() for row in list_rows(table[name])] for name in ("logprobs", "boundary_logprobs")}
        for row in rows[column]:
            row[token:][:1] = value
        columns = {name: join_rows(values, pa.float32()) for name, values in rows.items()}
        scores.write_shard(shard, {"id": table["id"], **columns}, counts={"tokens": 1})
    scores.finish(shards)
    return {**pipeline.caches, "scores": scores}, good.read_shard(0)["id"][0].as_py()


def _stream(caches: dict[str, Dataset], config: AlmConfig) -> None:
    next(iter(BatchStream(caches, config.objective, config.train)))


READERS: dict[str, Callable[[dict[str, Dataset], AlmConfig], object]] = {
    "training": lambda caches, config: _stream(caches, config),
    "its examples": lambda caches, _: read_examples(caches, 0, "train", ObjectiveConfig()),
    "evaluation": lambda caches, _: HeldOut.read(caches),
    "a reader's own": lambda caches, _: check_stored_scores(
        {"scores": caches["scores"].read_shard(0)}, caches["scores"], 0
    ),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("column", "value", "token"),
    [
        ("logprobs", np.nan, 1),
        ("logprobs", -np.inf, 3),
        ("logprobs", np.inf, 0),
        ("boundary_logprobs", np.nan, 0),
        ("boundary_logprobs", np.inf, 2),
    ],
)
def test_a_stored_score_that_is_not_finite_is_refused(
    cached: Pipeline, tmp_path: Path, reader: str, column: str, value: float, token: int
) -> None:
    caches, example = replaced(cached, tmp_path, column, value, token)
    with pytest.raises(
        UserError,
        match=rf"shard-0000\d\.parquet: example \S+, token {token}: .* is {value}: .*`alm repair ",
    ):
        READERS[reader](caches, cached.config)
    READERS[reader](dict(cached.caches), cached.config)
    assert example


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("logprobs", "lengths", "kinds", "problem"),
    [
        ([np.nan, -1.0, -np.inf], [1, 1, 1], [0, 0, 0], "log-probability is -inf"),
        ([np.nan], [3], [0], "no token with a prediction covers a byte"),
        ([np.nan, -1.0], [3, 0], [0, 0], "no token with a prediction covers a byte"),
        ([np.nan, -1.0], [0, 0], [3, 8], "no token with a prediction covers a byte"),
        ([], [], [], "no token with a prediction covers a byte"),
    ],
)
def test_texts_without_bits_per_byte_say_so(
    logprobs: Sequence[float], lengths: Sequence[int], kinds: Sequence[int], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        bits_per_byte(np.float32(logprobs), np.int32(lengths), np.uint8(kinds))
