"""The values of teacher scores; batching, padding and devices do not change them."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.batching import BatchBudget
from alm_pipeline.scoring.scorer import Scorer, TokenScores
from storage.errors import UserError
from tests import tiny

VOCABULARY = 300
BOUNDARY_IDS = torch.arange(0, VOCABULARY, 3)
MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": tiny.tiny_llama,
    "gemma": tiny.tiny_gemma,  # a sliding window of 16, and soft-capped logits
    "gpt2": tiny.tiny_gpt2,
    "qwen": tiny.tiny_qwen,
}
# of log-probabilities around -6: sums in another order, in bfloat16's 8 bits in every layer
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.1}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param](VOCABULARY)


def make_scorer(model: PreTrainedModel, **settings: object) -> Scorer:
    return Scorer(model, HeadVocabulary(BOUNDARY_IDS), ScoreConfig.model_validate(settings))


def random_examples(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]


def ragged_examples() -> list[np.ndarray]:
    return random_examples(1, 0, 60, 2, 17, 0, 33, 33, 5, 1, 48)


def dense_logprobs(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    """The oracle: [T, V] log-softmax of the model's own logits, one example alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    return torch.log_softmax(logits.double(), -1)


def assert_scores(found: TokenScores, expected: TokenScores, tolerance: float) -> None:
    for name, ours, theirs in zip(TokenScores._fields[:2], found, expected, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


def test_scores_are_those_of_the_models_own_log_softmax(model: PreTrainedModel) -> None:
    scorer = make_scorer(model)
    for ids, row in zip(ragged_examples(), scorer.score(ragged_examples()), strict=True):
        assert len(row.logprobs) == len(row.boundary_logprobs) == len(ids)
        if len(ids):
            expected = dense_logprobs(model, ids)
            assert np.isnan(row.logprobs[0])
            tokens = expected[:-1].gather(-1, torch.from_numpy(ids[1:].astype(np.int64))[:, None]).squeeze(-1)
            np.testing.assert_allclose(row.logprobs[1:], tokens, atol=1e-4)
            np.testing.assert_allclose(row.boundary_logprobs, expected[:, BOUNDARY_IDS].logsumexp(-1), atol=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("batch_tokens", [40, 100, 4096])
def test_padding_and_batches_do_not_change_a_score(
    model: PreTrainedModel, dtype: torch.dtype, batch_tokens: int
) -> None:
    """Each example alone, in batches of many sizes, and with other examples."""
    scorer, examples = make_scorer(model.to(dtype), batch_tokens=batch_tokens), ragged_examples()
    alone = [make_scorer(model, batch_tokens=1).score([example])[0] for example in examples]
    for row, expected in zip(scorer.score(examples), alone, strict=True):
        assert_scores(row, expected, TOLERANCES[dtype])
    others = random_examples(50, 3, 20)
    for row, expected in zip(scorer.score([*others, *examples])[len(others) :], alone, strict=True):
        assert_scores(row, expected, TOLERANCES[dtype])


def window_of(token: int, size: int, context: int, front: int) -> int:
    """The beginning of the window that scores a token: `context` tokens before the first that it scores."""
    step = size - context - front
    return 0 if token < size else size + (token - size) // step * step - context


def windowed_oracle(
    model: PreTrainedModel, ids: np.ndarray, size: int, context: int, begins: bool
) -> tuple[list[float], torch.Tensor]:
    """The log-probability of each token but the first, and [T, V] of each next token, from dense ones."""
    front = int(begins)
    windows: dict[int, torch.Tensor] = {}
    tokens, following = [], []
    for token in range(len(ids)):
        start = window_of(token, size, context, front)
        shift = front if start else 0
        if start not in windows:
            end = start + size - shift
            windows[start] = dense_logprobs(model, np.concatenate([ids[:shift], ids[start:end]]))
        assert token < size or token - start >= context
        at = token - start + shift
        following.append(windows[start][at])
        if token:
            tokens.append(windows[start][at - 1, ids[token]].item())
    return tokens, torch.stack(following)


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(("size", "context"), [(20, 10), (20, 18), (4, 1)])
def test_every_token_is_scored_from_its_window(model: PreTrainedModel, size: int, context: int, begins: bool) -> None:
    scorer = make_scorer(model, window=size, context=context)
    for ids in random_examples(45, 20, 21, 1):
        row = scorer.score([ids], begins=[begins])[0]
        tokens, following = windowed_oracle(model, ids, size, context, begins)
        np.testing.assert_allclose(row.logprobs[1:], tokens, atol=1e-4)
        boundary = following[:, BOUNDARY_IDS].logsumexp(-1)
        np.testing.assert_allclose(row.boundary_logprobs, boundary, atol=1e-4)


def test_a_window_as_long_as_the_example_changes_nothing(model: PreTrainedModel) -> None:
    examples = random_examples(60, 44, 3)
    for row, expected in zip(
        make_scorer(model, window=60).score(examples), make_scorer(model).score(examples), strict=True
    ):
        assert_scores(row, expected, 0)


def test_what_is_longer_than_the_models_context_is_scored_in_windows() -> None:
    """A GPT-2 has only 128 positions."""
    scorer = make_scorer(tiny.tiny_gpt2(VOCABULARY))
    assert (scorer.windows.size, scorer.windows.context) == (128, 64)
    scores = scorer.score(random_examples(500))[0]
    assert np.isfinite(scores.logprobs[1:]).all()
    assert np.isfinite(scores.boundary_logprobs).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"context": 127}, r"score\.context: 127 .* at most 126"), ({"window": 10, "context": 9}, "at most window - 2")],
)
def test_a_context_that_leaves_no_room_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises((ValidationError, UserError), match=message):
        make_scorer(tiny.tiny_gpt2(VOCABULARY), **settings)


class Room:
    """Memory for a number of tokens: with more, the model raises as torch does."""

    def __init__(self, scorer: Scorer, tokens: int, error: Exception) -> None:
        self.tokens, self.error = tokens, error
        self.tried: list[int] = []
        self.hidden_states = scorer._hidden_states

    def __call__(self, ids_BT: torch.Tensor) -> torch.Tensor:
        self.tried.append(ids_BT.numel())
        if ids_BT.numel() > self.tokens:
            raise self.error
        return self.hidden_states(ids_BT)


@pytest.fixture(
    params=[
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["device", "processor"],
)
def out_of_memory(request: pytest.FixtureRequest) -> Exception:
    error: Exception = request.param
    return error


def test_out_of_memory_halves_the_batch_and_drops_nothing(
    out_of_memory: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scorer, examples = make_scorer(tiny.tiny_llama(VOCABULARY), batch_tokens=1000), ragged_examples()
    expected = make_scorer(tiny.tiny_llama(VOCABULARY)).score(examples)
    room = Room(scorer, 130, out_of_memory)
    monkeypatch.setattr(scorer, "_hidden_states", room)
    for row, other in zip(scorer.score(examples), expected, strict=True):
        assert_scores(row, other, 1e-5)
    # 540 tokens: 9 rows of 60; 270: 4 rows; 135: 2 rows
    assert room.tried[:3] == [540, 240, 120]
    assert all(tokens <= 130 for tokens in room.tried[2:])
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split(":")[0] for line in warnings] == [
        "out of memory with 540 tokens at once (9 rows of up to 60)",
        "out of memory with 240 tokens at once (4 rows of up to 60)",
    ]
    assert "continuing with 120" in warnings[1]
    assert scorer.budget.tokens == 120


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("room", [130, 100_000])
def test_batches_given_ahead_change_no_bit(
    ahead: int, room: int, out_of_memory: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which has its next batch before the last one's scores are read; also if memory runs out."""
    found = []
    for batches in (0, ahead):
        scorer = make_scorer(tiny.tiny_llama(VOCABULARY), batch_tokens=200, top_k=2)
        scorer._batches_ahead = batches
        monkeypatch.setattr(scorer, "_hidden_states", Room(scorer, room, out_of_memory))
        found.append(scorer.score(ragged_examples()))
    for one, other in zip(*found, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("room", "tokens"), [(40, 32), (600, 512), (5000, 4096), (10**9, 65_536)])
def test_batches_grow_by_doubling_as_memory_allows(
    room: int, tokens: int, out_of_memory: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = make_scorer(tiny.tiny_llama(VOCABULARY), batch_tokens=32, window=32)
    tried = Room(scorer, room, out_of_memory)
    tried.hidden_states = lambda ids_BT: torch.zeros(*ids_BT.shape, 32)
    monkeypatch.setattr(scorer, "_hidden_states", tried)
    scorer._may_grow = True  # as on a GPU without batch_tokens
    scorer.score(random_examples(30))
    assert scorer.budget.tokens == 32  # a single batch needs no larger ones
    tried.tried.clear()
    scorer.score(random_examples(30, 30))
    assert scorer.budget.tokens == tokens
    sizes = [2**k for k in range(6, 17) if 2 ** (k - 1) <= tokens]
    assert tried.tried[: len(sizes)] == sizes
    assert max(tried.tried[len(sizes) :]) <= 60  # the two rows of 30


def test_compiled_layers_give_the_same_scores(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_scorer(model).score(ragged_examples())
    compiled: list[object] = []
    # without a compiler; the graphs are captured, as on a GPU
    compile_ = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda *args, **named: compiled.append(args) or compile_(*args, **named))
    scorer = make_scorer(model, compile=True)
    assert len(compiled) == 2  # layers
    for row, other in zip(scorer.score(ragged_examples()), expected, strict=True):
        assert_scores(row, other, 1e-5)


def test_an_example_that_does_not_fit_alone_is_named(out_of_memory: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(tiny.tiny_llama(VOCABULARY))
    monkeypatch.setattr(scorer, "_hidden_states", Room(scorer, 40, out_of_memory))
    examples = random_examples(10, 41, 30)
    with pytest.raises(
        UserError, match=r"example long: out of memory with only 41 of its tokens: .* smaller score\.window"
    ):
        scorer.score(examples, names=["short", "long", "middle"])
    windowed = make_scorer(tiny.tiny_llama(VOCABULARY), window=40)
    monkeypatch.setattr(windowed, "_hidden_states", Room(windowed, 40, out_of_memory))
    assert [len(row.logprobs) for row in windowed.score(examples)] == [10, 41, 30]


def test_another_error_is_not_taken_for_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(tiny.tiny_llama(VOCABULARY))
    monkeypatch.setattr(scorer, "_hidden_states", Room(scorer, 0, RuntimeError("mat1 and mat2 differ")))
    with pytest.raises(RuntimeError, match="mat1"):
        scorer.score(random_examples(4))


def test_progress_counts_each_token_once() -> None:
    counted: list[float] = []
    scorer = make_scorer(tiny.tiny_llama(VOCABULARY), window=16, batch_tokens=64)
    scorer.score(ragged_examples(), lambda units, note="": counted.append(units))
    assert sum(counted) == sum(map(len, ragged_examples()))


def test_the_likeliest_tokens(model: PreTrainedModel) -> None:
    scorer = make_scorer(model, top_k=5, batch_tokens=64)
    for ids, row in zip(ragged_examples(), scorer.score(ragged_examples()), strict=True):
        assert row.top_ids.shape == row.top_logprobs.shape == (len(ids), 5)
        if len(ids):
            expected = dense_logprobs(model, ids).topk(5, -1)
            np.testing.assert_array_equal(row.top_ids, expected.indices)
            np.testing.assert_allclose(row.top_logprobs, expected.values, atol=1e-4)


@pytest.mark.parametrize("on_disk", [[], ["model.layers.0"], ["model.embed_tokens", "lm_head"]])
def test_a_model_spread_by_accelerate_scores_the_same(on_disk: list[str], tmp_path: Path) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    folder = tiny.save(tmp_path / "untied", tiny.tiny_llama(len(tokenizer), tied=False), tokenizer)
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    places = {part: "disk" if part in on_disk else "cpu" for part in parts}
    spread = Scorer.of(load_model(folder, "float32", device_map=places), LoadedTokenizer(folder))
    expected = Scorer.load(ModelReference(folder), ScoreConfig(dtype="float32")).score(random_examples(30, 7))
    for row, other in zip(spread.score(random_examples(30, 7)), expected, strict=True):
        assert_scores(row, other, 0)


def test_a_missing_device_is_refused(llama_folder: str) -> None:
    with pytest.raises(UserError, match="cuda:99: this machine has no such device"):
        Scorer.load(ModelReference(llama_folder), ScoreConfig(dtype="float32"), device="cuda:99")


def test_a_model_that_does_more_than_its_head_is_refused() -> None:
    model = tiny.tiny_llama(VOCABULARY)

    def scaled(_module: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0] * 1.5,)

    model.get_output_embeddings().register_forward_pre_hook(scaled)
    with pytest.raises(UserError, match="differ from those of its output layer on"):
        make_scorer(model)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    folder = tiny.save(tmp_path / "small", tiny.tiny_llama(len(tokenizer) - 7), tokenizer)
    with pytest.raises(UserError, match=r"highest id is .* embedding has .* rows"):
        Scorer.load(ModelReference(folder), ScoreConfig(dtype="float32"))


def test_a_budget_is_kept_by_all_but_a_single_row() -> None:
    assert [BatchBudget(100).rows(length) for length in (1, 33, 50, 51, 100, 101, 9000)] == [100, 3, 2, 1, 1, 1, 1]
