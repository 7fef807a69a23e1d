"""The report on tiny pairs that are trained on the spot, where a merge helps, and where none does."""

from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from alm_pipeline.calibration.calibrate import ComparedModels, QuestionCalibration, QuestionSource
from alm_pipeline.calibration.report.measures import ScoredChoices
from alm_pipeline.calibration.report.output import remarks, report_page, table_rows, write_report
from alm_pipeline.calibration.report.points import (
    LOWER_NLL,
    PARETO,
    STRONG,
    CalibrationReport,
    Point,
    PointMeasures,
    make_report,
)
from alm_pipeline.calibration.report.resampling import dominates
from alm_pipeline.calibration.report.settings import QuestionColumns, ReportSettings, Sweep, parse_weights
from alm_pipeline.runtime import output_files
from storage.errors import UserError
from tests.alm_pipeline.calibration.pairs import Pair, no_free_lunch, overconfident_child

Reported = tuple[CalibrationReport, QuestionCalibration]


def reported(pair: Pair, folder: Path) -> Reported:
    source = QuestionSource(pair.questions, QuestionColumns(delimiter=""))
    sweep = Sweep(parse_weights("0:1:0.2"))
    calibration = QuestionCalibration(ComparedModels((pair.base, pair.tuned), sweep), source, str(folder / "store"))
    calibration.run()
    return calibration.report(), calibration


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("overconfident")
    return reported(overconfident_child(folder), folder)


@pytest.fixture(scope="module")
def not_helped(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("clean")
    return reported(no_free_lunch(folder), folder)


def by_weight(points: list[PointMeasures]) -> Mapping[float, PointMeasures]:
    return {point.weight or 0.0: point for point in points if point.temperature is None}


def test_a_merge_between_an_undertrained_base_and_an_overconfident_child_helps(helped: Reported) -> None:
    points = by_weight(list(helped[0].measures["sum", "all"]))
    best, base, tuned = points[0.4], points[0.0], points[1.0]
    shares = [
        dominates(
            best.resampled["accuracy"], best.resampled["ece"], parent.resampled["accuracy"], parent.resampled["ece"]
        ).mean()
        for parent in (base, tuned)
    ]
    assert min(shares) >= 0.9
    assert base.value("overconfidence") < -0.1 < 0.1 < tuned.value("overconfidence")
    assert best.on_front
    assert best.front_share is not None
    assert best.front_share > 0.9
    (verdict,) = (verdict for verdict in helped[0].verdicts if verdict.reading == "sum")
    assert verdict.chosen == 0.4
    assert verdict.sentence.startswith("λ = 0.4 helps. On the test half: accuracy 0.")
    assert min(verdict.shares[PARETO], verdict.shares[STRONG], verdict.shares[LOWER_NLL]) >= 0.9


def test_a_temperature_repairs_calibration_and_never_accuracy(helped: Reported) -> None:
    test = helped[0].measures["sum", "test"]
    (scaled,) = (point for point in test if point.temperature)
    (tuned,) = (point for point in test if point.role == "tuned" and not point.temperature)
    assert scaled.value("accuracy") == tuned.value("accuracy")
    assert scaled.value("ece") < tuned.value("ece") / 2
    assert scaled.value("nll") > by_weight(list(test))[0.4].value("nll")
    assert not [point for point in helped[0].measures["sum", "validation"] if point.temperature]


def test_it_says_so_where_no_merge_helps(not_helped: Reported) -> None:
    report = not_helped[0]
    assert [point.name for point in report.measures["sum", "all"] if point.on_front] == ["base"]
    assert {verdict.chosen for verdict in report.verdicts} == {None}
    for verdict in report.verdicts:
        assert verdict.sentence.startswith("No λ helps: on the validation half, the base model has the least NLL")
    assert "sum, token, bytes: No λ helps" in "\n".join(remarks(report, "sum"))


def test_the_folder_has_tables_pictures_and_a_page(helped: Reported, tmp_path: Path) -> None:
    report, calibration = helped
    files = write_report(report, "sum", calibration.title, str(tmp_path / "out"))
    names = [
        "calibration.json",
        "calibration.md",
        "frontier.parquet",
        "frontier.png",
        "reliability.parquet",
        "reliability.png",
    ]
    assert sorted(Path(file).name for file in files) == names
    frontier = pl.read_parquet(tmp_path / "out" / "frontier.parquet")
    assert set(frontier["reading"]) == {"sum", "token", "bytes"}
    one = frontier.filter(reading="sum", questions="test", measure="accuracy", weight=0.4).row(0, named=True)
    point = by_weight(list(report.measures["sum", "test"]))[0.4]
    assert one["n"] == 600
    assert (one["value"], one["low"], one["high"]) == astuple(point.estimates["accuracy"])
    assert one["front_share"] == point.front_share
    bins = pl.read_parquet(tmp_path / "out" / "reliability.parquet")
    counts = bins.group_by("model", "temperature", "reading", "questions").agg(pl.col("questions_in_bin").sum())
    assert set(counts["questions_in_bin"]) == {600, 1200}
    again = write_report(report, "sum", calibration.title, str(tmp_path / "again"))
    assert [Path(file).read_bytes() for file in again] == [Path(file).read_bytes() for file in files]
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = report_page(report, "sum", "a|b <script>")
    assert "<script>" not in page
    assert len([line for line in page.splitlines() if line.startswith("| ")]) == 2 + len(table_rows(report, "sum"))


def test_no_picture_of_an_earlier_run_stays(helped: Reported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where matplotlib is missing, an older picture stood beside new numbers."""
    report, calibration = helped
    before = write_report(report, "sum", calibration.title, str(tmp_path))
    monkeypatch.setattr(output_files, "find_spec", lambda _: None)
    files = write_report(report, "sum", calibration.title, str(tmp_path))
    assert [file for file in before if file not in files] == [f"{tmp_path}/frontier.png", f"{tmp_path}/reliability.png"]
    assert {file.name for file in tmp_path.iterdir()} == {Path(file).name for file in files}


def test_other_bins_and_readings_score_nothing_again(helped: Reported) -> None:
    report, calibration = helped
    before = {file: file.stat().st_mtime_ns for file in Path(calibration.questions.root).rglob("*")}
    other = calibration.report(ReportSettings(bins=15, resamples=50, seed=1))
    one, same = (by_weight(list(each.measures["sum", "all"]))[0.4] for each in (report, other))
    assert one.value("ece") != same.value("ece")
    assert one.value("nll") == same.value("nll")
    assert {file: file.stat().st_mtime_ns for file in Path(calibration.questions.root).rglob("*")} == before


def scores(seed: int, questions: int = 40) -> ScoredChoices:
    generator = np.random.default_rng(seed)
    ones = np.ones((questions, 3), np.int64)
    return ScoredChoices(generator.normal(size=(questions, 3)), ones, ones, generator.integers(0, 3, questions))


def test_the_order_of_questions_does_not_matter() -> None:
    clusters, order = np.arange(40), np.random.default_rng(0).permutation(40)
    points = [Point(name, "model", None, scores(seed)) for seed, name in enumerate(("one", "other"))]
    permuted = [Point(point.name, "model", None, point.scores.rows(order)) for point in points]
    one, other = (list(make_report(each, rows).frontier()) for each, rows in ((points, clusters), (permuted, order)))
    for row, same in zip(one, other, strict=True):
        assert row == pytest.approx(same, abs=1e-6)


@pytest.mark.bad_input
def test_too_few_clusters_are_refused() -> None:
    point = Point("one", "model", None, scores(0))
    with pytest.raises(UserError, match="3 clusters of questions were scored by all models: at least 4 are needed"):
        make_report([point], np.arange(40) % 3)
