"""Scorers of small servers, and how their scores are compared."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.scorer import TokenScores
from alm_pipeline.scoring.served_scorer import ServedScorer, open_served_scorer
from tests import tiny


def served_config(*urls: str, engine: str = "http", **settings: Any) -> ScoreConfig:
    served = {"urls": urls, "wait": 20.0, "timeout": 20.0, "in_flight": 4, **settings.pop("served", {})}
    return ScoreConfig.model_validate({"engine": engine, "dtype": "float32", "served": served, **settings})


def encoded(teacher: ModelReference) -> list[np.ndarray]:
    return [np.array(teacher.tokenizer.fast(text)["input_ids"], np.int32) for text in tiny.TEXTS]


@contextmanager
def scorer(teacher: ModelReference, config: ScoreConfig) -> Iterator[ServedScorer]:
    with open_served_scorer(teacher, config) as only:
        yield only


def assert_same(found: Sequence[TokenScores], expected: Sequence[TokenScores], tolerance: float = 3e-5) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("logprobs", "boundary_logprobs"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=tolerance, rtol=1e-5)
