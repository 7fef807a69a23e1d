"""Teacher scores: what they are, and that batching does not change them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.scoring import stage
from alm_pipeline.scoring.stage import Scorer, _batches, round_mantissa
from storage.errors import UserError
from tests import tiny


@pytest.fixture(scope="module", params=["llama", "gemma"])
def scorer(request: pytest.FixtureRequest) -> Scorer:
    folder = request.getfixturevalue(f"{request.param}_folder")
    return Scorer.load(folder, "float32")


def examples(scorer: Scorer, count: int = 9) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    vocabulary = scorer.head.weight_VH.shape[0]
    lengths = [1, 0, *generator.integers(2, 60, count - 2)]
    return [generator.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


def test_scores_are_those_of_the_models_own_log_softmax(scorer: Scorer) -> None:
    ids = examples(scorer)[4]
    with torch.no_grad():
        logits = scorer.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double()
    expected = torch.log_softmax(logits, -1)
    logprobs, boundary = scorer.score([ids])[0]
    assert np.isnan(logprobs[0])
    next_tokens = expected[:-1].gather(-1, torch.from_numpy(ids[1:].astype(np.int64))[:, None]).squeeze(-1)
    np.testing.assert_allclose(logprobs[1:], next_tokens.numpy(), atol=1e-4)
    mask = expected[:, scorer.boundary_ids_K].logsumexp(-1)
    np.testing.assert_allclose(boundary, mask.numpy(), atol=1e-4)


def test_padding_and_batch_composition_do_not_change_a_score(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = examples(scorer)
    together = scorer.score(batch)
    monkeypatch.setattr(stage, "BATCH_TOKENS", 1)
    for row, alone in zip(together, scorer.score(batch), strict=True):
        np.testing.assert_allclose(row[0], alone[0], atol=1e-4)
        np.testing.assert_allclose(row[1], alone[1], atol=1e-4)
    assert [len(row[0]) for row in together] == [len(example) for example in batch]


def test_batches_hold_every_example_once_within_the_budget() -> None:
    lengths = [5, 0, 4096, 9000, 17, 17, 3000, 1]
    batches = list(_batches(lengths))
    assert sorted(index for batch in batches for index in batch) == [0, 2, 3, 4, 5, 6, 7]
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= stage.BATCH_TOKENS


@given(st.lists(st.floats(-(2.0**99), 0, width=32), min_size=1), st.integers(4, 23))
def test_rounding_keeps_the_promised_precision(numbers: list[float], bits: int) -> None:
    values = np.array([*numbers, np.nan, -np.inf], dtype=np.float32)
    rounded = round_mantissa(values, bits)
    normal = np.isfinite(values) & (np.abs(values) > 1e-37)
    exact = values[normal].astype(np.float64)
    assert (np.abs(rounded[normal] - exact) <= np.abs(exact) * 2.0 ** -(bits + 1)).all()
    np.testing.assert_array_equal(rounded[~np.isfinite(values)], values[~np.isfinite(values)])
    np.testing.assert_array_equal(round_mantissa(rounded, bits), rounded)
    assert not (rounded[normal].view(np.uint32) & ((1 << (23 - bits)) - 1)).any()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: object) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    folder = tiny.save(tmp_path / "small", tiny.tiny_llama(len(tokenizer) - 7), tokenizer)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"highest id is .* embedding has .* rows"):
        Scorer.load(folder, "float32")
