"""Bits per byte, held to sums over tokens."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from alm_pipeline.config import AlmConfig, FilesSource, ScoreConfig
from alm_pipeline.evaluation.bits_per_byte import bits_per_byte
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.scoring.scorer import Scorer
from storage.errors import UserError
from storage.schemas import TokenKind


def test_only_predicted_content_tokens_count() -> None:
    logprobs = np.array([np.nan, -1.0, -2.0, -9.0, -0.5], dtype=np.float32)
    lengths = np.array([3, 2, 4, 0, 1], dtype=np.int32)
    kinds = np.array([0, 0, 0, TokenKind.END_OF_TEXT, TokenKind.MIXED], dtype=np.uint8)
    assert bits_per_byte(logprobs, lengths, kinds) == pytest.approx(3.0 / math.log(2) / 6)


def test_cached_scores_give_what_the_model_gives(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    # the teacher as a student of itself
    caches = {**pipeline.caches, "student_tokens": pipeline.tokens("teacher")}
    held_out = HeldOut.read(caches)
    scorer = Scorer.load(ModelReference(config.teacher), ScoreConfig(dtype="float32"))
    live = held_out.student.bits_per_byte(held_out.student.score(scorer))
    assert live == pytest.approx(held_out.teacher_bits_per_byte, rel=1e-4)


def test_both_sides_are_measured_on_the_same_examples(config: AlmConfig, tmp_path: Path) -> None:
    """The teacher's tokenizer takes U+2581 for a space and drops such texts: the student's are not counted either."""
    documents = Path(config.corpus.source.urls[0]).read_text(encoding="utf-8").splitlines()  # type: ignore[union-attr]
    odd = [json.dumps({"text": f"\u2581 odd {k} \u0001\u0002\u0003 zzqqxx"}) for k in range(80)]
    results = []
    for name, lines in (("plain", documents), ("odd", documents + odd)):
        file = tmp_path / name / "documents.jsonl"
        file.parent.mkdir()
        file.write_text("\n".join(lines), encoding="utf-8")
        corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(str(file),))})
        pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path))
        pipeline.cache()
        student = Scorer.load(ModelReference(config.student.model), ScoreConfig(dtype="float32"))
        held_out = HeldOut.read(pipeline.caches)
        results += [held_out.student.bits_per_byte(held_out.student.score(student)), held_out.teacher_bits_per_byte]
    assert pipeline.tokens("teacher").complete_manifest().dropped == {"holds_the_space_stand_in": 80}
    assert results[2:] == pytest.approx(results[:2], rel=1e-5)


def test_nothing_held_out_is_told(config: AlmConfig, tmp_path: Path) -> None:
    corpus = config.corpus.model_copy(update={"held_out": 0.0})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path))
    pipeline.cache()
    with pytest.raises(UserError, match=r"raise corpus\.held_out"):
        HeldOut.read(pipeline.caches)
