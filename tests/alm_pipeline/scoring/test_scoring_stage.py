"""The stage: shards of scores do not depend on the device, are resumed, and are counted."""

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring import stage
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.scoring.stage import round_mantissa, score, scores_dataset
from storage.columns import list_rows
from storage.dataset import Dataset
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.scoring.stages import contents, run, tokens_of

SHARDS = [
    [f"{text} {k}" * (1 + k % 3) for k, text in enumerate(tiny.TEXTS)],
    [],
    ["The fox.", "a"],
    ["dog " * 40, "x = 1\n\n"],
    ["The lazy dog jumps."],
]


@pytest.fixture
def tokens(tmp_path: Path, gemma_folder: str) -> Dataset:
    return tokens_of(SHARDS, tmp_path, gemma_folder)


def test_several_devices_write_the_same_bytes(tokens: Dataset, tmp_path: Path, gemma_folder: str) -> None:
    one = run(tokens, tmp_path / "one", gemma_folder)
    for count in (2, 3, 8):  # 8: more than shards
        several = run(tokens, tmp_path / str(count), gemma_folder, devices=["cpu"] * count)
        assert several.name == one.name
        assert contents(several) == contents(one)


def test_threads_that_take_turns_on_a_device_write_the_same_bytes(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = contents(run(tokens, tmp_path / "one", gemma_folder))
    monkeypatch.setattr(stage, "_THREADS", {"cpu": 2})
    for count in (1, 2):
        assert contents(run(tokens, tmp_path / str(count), gemma_folder, devices=["cpu"] * count)) == one


def test_groups_of_shards_are_written_as_all_at_once(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(run(tokens, tmp_path / "whole", gemma_folder))
    config = ScoreConfig(dtype="float32")
    scores = replace(scores_dataset(tokens, ModelReference(gemma_folder), config), root=str(tmp_path / "parts"))
    unfinished = replace(tokens, root=str(tmp_path / "unfinished"))
    shutil.copytree(tokens.url, unfinished.url)
    for name in ("manifest.json", "shard-00003.json"):
        (Path(unfinished.url) / name).unlink()
    for group in ([4, 1], [], [0, 2]):
        assert score(unfinished, scores, ModelReference(gemma_folder), config, group) is None
    with pytest.raises(UserError, match=r"shard-00003\.parquet: not complete"):
        score(unfinished, scores, ModelReference(gemma_folder), config, [3])
    score(tokens, scores, ModelReference(gemma_folder), config, [3, 4])
    monkeypatch.setattr(stage, "_scorers", None)  # nothing is missing: no teacher is loaded
    assert scores.manifest() is None
    assert score(tokens, scores, ModelReference(gemma_folder), config) == scores.manifest()
    assert contents(scores) == whole


def test_a_resumed_run_scores_what_is_missing(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = contents(run(tokens, tmp_path / "whole", gemma_folder))
    scored: list[int] = []
    once = stage._score_shard

    def fail_at_last(tokens: Dataset, scores: Dataset, shard: int, *rest: Any) -> None:
        scored.append(shard)
        if len(scored) == 4:
            raise KeyboardInterrupt
        once(tokens, scores, shard, *rest)

    monkeypatch.setattr(stage, "_score_shard", fail_at_last)
    with pytest.raises(KeyboardInterrupt):
        run(tokens, tmp_path / "broken", gemma_folder)
    assert contents(run(tokens, tmp_path / "broken", gemma_folder)) == unbroken
    assert scored == [0, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failing_device_stops_the_others(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the failing device is raised, whichever it is."""
    scorers: list[Scorer] = []
    load, failed = Scorer.load, threading.Event()

    def load_and_keep(*args: Any, **settings: Any) -> Scorer:
        scorer = load(*args, **settings)
        monkeypatch.setattr(scorer, "score", broken if len(scorers) == failing else partial(behind, scorer.score))
        scorers.append(scorer)
        return scorer

    def broken(*_: Any, **__: Any) -> None:
        failed.set()
        raise RuntimeError("unspecified launch failure")

    def behind(score: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        assert failed.wait(60)
        return score(*args, **settings)

    monkeypatch.setattr(Scorer, "load", load_and_keep)
    with pytest.raises(RuntimeError, match="launch failure"):
        run(tokens, tmp_path / "failing", gemma_folder, devices=["cpu", "cpu"])


def test_progress_is_in_tokens_per_second(
    tokens: Dataset, tmp_path: Path, gemma_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alm_pipeline")
    run(tokens, tmp_path / "scores", gemma_folder)
    total = tokens.complete_manifest().counts["tokens"]
    lines = [record.message for record in caplog.records if record.message.startswith("score: ")]
    assert f": {total:,} tokens in " in lines[-1]
    assert lines[-1].endswith(" tokens/s")


def test_what_decides_the_scores_decides_their_name(tokens: Dataset, gemma_folder: str) -> None:
    def name(**settings: Any) -> str:
        return scores_dataset(tokens, ModelReference(gemma_folder), ScoreConfig.model_validate(settings)).name

    plain = name()
    assert {name(batch_tokens=7), name(devices=["cpu", "cpu"]), name(device_map="auto"), name(top_k=0)} == {plain}
    others = [name(window=100), name(window=100, context=10), name(context=10), name(top_k=1), name(dtype="float32")]
    assert len({plain, *others}) == 6


def test_the_likeliest_tokens_are_columns_if_configured(tokens: Dataset, tmp_path: Path, gemma_folder: str) -> None:
    made = run(tokens, tmp_path, gemma_folder, top_k=3, mantissa_bits=10)
    frame = pl.read_parquet(f"{made.url}/shard-*.parquet")
    assert frame.columns == ["id", "logprobs", "boundary_logprobs", "top_ids", "top_logprobs"]
    assert (frame["top_ids"].list.len() == 3 * frame["logprobs"].list.len()).all()
    # one row per token, without this project
    likely = frame.select(pl.col("top_logprobs").explode().reshape((-1, 3))).to_series()
    assert len(likely) == made.complete_manifest().counts["tokens"]
    assert (likely.arr.get(0) >= likely.arr.get(1)).all()
    values = frame["top_logprobs"].explode().drop_nulls().to_numpy()
    np.testing.assert_array_equal(round_mantissa(values, 10), values)
    plain = run(tokens, tmp_path, gemma_folder, mantissa_bits=10)
    assert pl.read_parquet(f"{plain.url}/shard-*.parquet").equals(frame.select("id", "logprobs", "boundary_logprobs"))


def test_long_examples_are_scored_in_windows_after_their_begin_token(
    tokens: Dataset, tmp_path: Path, gemma_folder: str
) -> None:
    found = list_rows(run(tokens, tmp_path, gemma_folder, window=24, mantissa_bits=23).read_shard(3)["logprobs"])
    ids = list_rows(tokens.read_shard(3, ["token_ids"])["token_ids"])
    assert len(ids[0]) > 24
    scorer = Scorer.load(ModelReference(gemma_folder), ScoreConfig(dtype="float32", window=24))
    for row, expected in zip(found, scorer.score(ids, begins=[True, True]), strict=True):
        np.testing.assert_array_equal(row, expected.logprobs)
    assert not np.array_equal(found[0], scorer.score(ids)[0].logprobs, equal_nan=True)


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
