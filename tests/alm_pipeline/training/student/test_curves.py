"""Curves: smoothing compared with a plain mean, reproducible pictures, and reading a student's folder."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alm_pipeline.training.student.curves import TrainingCurves, draw_curves, read_curves, smooth
from storage.errors import UserError

BITS = {"teacher": 0.7, "student_before": 1.0, "student_after": 0.9}


def run(steps: int, name: str = "student", seed: int = 0) -> TrainingCurves:
    noise = np.random.default_rng(seed).uniform(0.5, 1.5, steps)
    step = np.arange(1.0, steps + 1)
    names = ("loss", "kl", "learning_rate", "grad_norm")
    metrics = {"step": step, **{column: noise * 10 ** (-3 * step / max(1, steps)) for column in names}}
    return TrainingCurves(name, metrics, {"step": step[::10], "bits_per_byte": 1 / noise[::10]}, {}, BITS)


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200))
def test_smoothing_is_the_mean_around_each_step(values: list[float]) -> None:
    given_values = np.array(values)
    half = max(1, len(values) // 80)
    around = [given_values[max(0, k - half) : k + half + 1] for k in range(len(values))]
    means = [np.mean(part) for part in around]
    np.testing.assert_allclose(smooth(given_values), given_values if len(values) < 20 else means, atol=1e-9)


def test_pictures_of_equal_runs_are_equal_and_of_others_differ() -> None:
    picture = draw_curves([run(50)])
    assert Image.open(io.BytesIO(picture)).format == "PNG"
    assert draw_curves([run(50)]) == picture
    assert draw_curves([run(50, seed=1)]) != picture


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_runs_of_any_length_are_drawn_alone_and_together(steps: int) -> None:
    alone = Image.open(io.BytesIO(draw_curves([run(steps)])))
    together = Image.open(io.BytesIO(draw_curves([run(steps), run(30, "another")])))
    assert together.height > alone.height  # the names are below the panels


def test_speed_and_results_are_drawn() -> None:
    bare = TrainingCurves("student", run(30).metrics)
    speed = {"step": bare.metrics["step"], "tokens_per_second": np.full(30, 1e5)}
    pictures = {
        draw_curves([curves]) for curves in (bare, replace(bare, bits_per_byte=BITS), replace(bare, speed=speed))
    }
    assert len(pictures) == 3


def test_a_folders_files_are_read(tmp_path: Path) -> None:
    pl.DataFrame({"step": [1, 2], "loss": [0.5, None]}).write_parquet(tmp_path / "metrics.parquet")
    pl.DataFrame({"step": [2], "bits_per_byte": [0.8]}).write_parquet(tmp_path / "evaluations.parquet")
    found = read_curves(str(tmp_path), BITS)
    np.testing.assert_array_equal(found.metrics["loss"], [0.5, np.nan])
    assert found.evaluations["bits_per_byte"].tolist() == [0.8]
    assert found.last_step == 2
    assert found.bits_per_byte == BITS
    assert found.speed == {}


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no metrics\.parquet: name the folder of a trained student"):
        read_curves(str(tmp_path))


@pytest.mark.bad_input
@pytest.mark.parametrize("file", ["metrics.parquet", "evaluations.parquet", "runs/speed.parquet"])
@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(None, id="nonsense"),
        pytest.param({"loss": [1.0]}, id="no step"),
        pytest.param({"step": [1, None], "loss": [1.0, 2.0]}, id="a step without a number"),
        pytest.param({"step": [float("nan")], "loss": [1.0]}, id="a step that is NaN"),
        pytest.param({"step": [1], "loss": ["x"]}, id="text"),
        pytest.param({"step": [1], "loss": [[1.0]]}, id="lists"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, file: str, columns: dict[str, list[object]] | None) -> None:
    pl.DataFrame({"step": [1], "loss": [0.5]}).write_parquet(tmp_path / "metrics.parquet")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    if columns is None:
        (tmp_path / file).write_text("nonsense")
    else:
        pl.DataFrame(columns).write_parquet(tmp_path / file)
    with pytest.raises(UserError, match=rf"{file}: is not a valid Parquet file of numbers by step: .*alm repair"):
        read_curves(str(tmp_path))
