"""Bits per byte, held to sums over tokens."""

import math
from pathlib import Path

import numpy as np
import pytest

from alm_pipeline.config import AlmConfig
from alm_pipeline.evaluation.bits_per_byte import bits_per_byte, cached_bits_per_byte, model_bits_per_byte
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.stage import Scorer
from storage.errors import UserError
from storage.schemas import TokenKind


def test_only_predicted_content_tokens_count() -> None:
    logprobs = np.array([np.nan, -1.0, -2.0, -9.0, -0.5], dtype=np.float32)
    lengths = np.array([3, 2, 4, 0, 1], dtype=np.int32)
    kinds = np.array([0, 0, 0, TokenKind.SPECIAL, TokenKind.MIXED], dtype=np.uint8)
    assert bits_per_byte(logprobs, lengths, kinds) == pytest.approx(3.0 / math.log(2) / 6)


def test_cached_scores_give_what_the_model_gives(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    cached = cached_bits_per_byte(pipeline.examples, pipeline.tokens("teacher"), pipeline.scores)
    scorer = Scorer.load(config.teacher, "float32")
    assert model_bits_per_byte(pipeline.examples, pipeline.tokens("teacher"), scorer, "") == pytest.approx(cached)


def test_nothing_held_out_is_told(config: AlmConfig, tmp_path: Path) -> None:
    corpus = config.corpus.model_copy(update={"held_out": 0.0})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path))
    pipeline.cache()
    with pytest.raises(UserError, match=r"raise corpus\.held_out"):
        cached_bits_per_byte(pipeline.examples, pipeline.tokens("teacher"), pipeline.scores)
