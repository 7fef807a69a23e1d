"""How exactly held-out bits per byte are known."""

import math

import numpy as np
import pytest

from alm_pipeline.evaluation.bits_per_byte import bits_per_byte, standard_error
from alm_pipeline.evaluation.precision import LEAST_DOCUMENTS, bits_text, why_too_few


def test_the_standard_error_is_the_spread_over_samples() -> None:
    """Of many samples of documents, the bits per byte differ by about the standard error of one of them."""
    random = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(400):
        tokens = random.integers(20, 60, 50)
        documents = np.repeat(np.arange(50), tokens)
        lengths = random.integers(1, 6, len(documents)).astype(np.int32)
        logprobs = (-random.exponential(2, len(documents)) * np.repeat(random.uniform(0.5, 1.5, 50), tokens)).astype(
            "f4"
        )
        kinds = np.zeros(len(documents), np.uint8)
        values.append(bits_per_byte(logprobs, lengths, kinds))
        error = standard_error(logprobs, lengths, kinds, documents)
        assert error is not None
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)


def test_pieces_of_a_document_are_one_observation() -> None:
    logprobs, lengths = np.float32([-1, -1, -3, -3]), np.int32([1, 1, 1, 1])
    kinds = np.zeros(4, np.uint8)
    apart = standard_error(logprobs, lengths, kinds, np.arange(4))
    together = standard_error(logprobs, lengths, kinds, np.array([0, 0, 1, 1]))
    assert together == pytest.approx(1 / math.log(2))
    assert apart == pytest.approx(math.sqrt(4 / 3 * 4) / 4 / math.log(2))
    assert standard_error(logprobs, lengths, kinds, np.zeros(4, np.int64)) is None


def test_too_few_documents_are_said_to_be() -> None:
    assert why_too_few(3, 0.8, 0.01) == "only 3 held-out documents: too few to compare"
    assert why_too_few(1, 0.8, None) == "only 1 held-out document: too few to compare"
    assert why_too_few(LEAST_DOCUMENTS, 0.8, 0.05) == ""
    assert "standard error of 25%" in why_too_few(500, 0.8, 0.2)
    assert bits_text(0.84651, 0.03) == "0.8465, standard error 0.0300"
    assert bits_text(0.84651, None) == "0.8465"
