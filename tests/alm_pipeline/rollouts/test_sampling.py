"""Tokens are drawn by the definition of sampling, from a text's own random numbers."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.config import SamplingConfig
from alm_pipeline.rollouts.sampling import draw, row_seed, uniforms

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -torch.inf, 0.0])


def drawn(sampling: SamplingConfig, count: int = 12_000) -> np.ndarray:
    """The share of each token among evenly spaced uniform numbers: its probability, up to 1 / count."""
    spaced = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = draw(LOGITS.expand(count, -1), spaced, sampling)
    return np.bincount(tokens.numpy(), minlength=len(LOGITS)) / count


def probabilities(temperature: float) -> np.ndarray:
    scaled = np.exp(LOGITS.numpy().astype(float) / temperature)
    return scaled / scaled.sum()


def test_tokens_have_the_probabilities_of_the_model() -> None:
    for temperature in (1.0, 0.3, 4.0):
        share = drawn(SamplingConfig(temperature=temperature))
        np.testing.assert_allclose(share, probabilities(temperature), atol=2e-4)


def test_only_the_likeliest_are_drawn() -> None:
    expected = probabilities(1.0) * [1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(drawn(SamplingConfig(top_k=2)), expected / expected.sum(), atol=2e-4)
    nucleus = probabilities(1.0)
    assert nucleus[0] < 0.6 < nucleus[0] + nucleus[3]
    np.testing.assert_allclose(drawn(SamplingConfig(top_p=0.6)), expected / expected.sum(), atol=2e-4)
    np.testing.assert_array_equal(drawn(SamplingConfig(top_p=1e-6)), [1, 0, 0, 0, 0, 0])


def test_temperature_zero_takes_the_likeliest() -> None:
    np.testing.assert_array_equal(drawn(SamplingConfig(temperature=0)), [1, 0, 0, 0, 0, 0])


@given(st.floats(0, 1, exclude_max=True), st.sampled_from([0.05, 1.0, 30.0]))
def test_a_token_without_probability_is_never_drawn(number: float, temperature: float) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 700.0, -torch.inf]])
    chosen = draw(logits, torch.tensor([number], dtype=torch.float64), SamplingConfig(temperature=temperature))
    assert torch.isfinite(logits[0, chosen]).all()


def test_random_numbers_are_of_the_seed_the_round_and_the_prompt() -> None:
    first = uniforms(0, 1, "a", 5)
    np.testing.assert_array_equal(first, uniforms(0, 1, "a", 9)[:5])
    others = [uniforms(1, 1, "a", 5), uniforms(0, 2, "a", 5), uniforms(0, 1, "b", 5)]
    assert all((first != other).all() for other in others)
    assert len({row_seed(0, 1, "a"), row_seed(1, 1, "a"), row_seed(0, 2, "a"), row_seed(0, 1, "b")}) == 4
