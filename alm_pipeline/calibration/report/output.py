"""What a calibration report is shown as: two Parquet tables, a JSON file, two pictures, and a page with a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alm_pipeline.calibration.report.drawing import draw_front, draw_reliability, point_name, shown_points
from alm_pipeline.calibration.report.measures import Measure, reliability
from alm_pipeline.calibration.report.points import CalibrationReport, PointMeasures
from alm_pipeline.calibration.report.settings import Reading
from alm_pipeline.runtime.output_files import write_outputs
from storage.printed.inert import markdown

FRONTIER, RELIABILITY = "frontier.parquet", "reliability.parquet"
DOCUMENT, PAGE = "calibration.json", "calibration.md"
FRONTIER_PICTURE, RELIABILITY_PICTURE = "frontier.png", "reliability.png"


def write_report(report: CalibrationReport, reading: Reading, title: str, folder: str) -> list[str]:
    """Write the tables, what is printed, the pictures and a page to a folder, in place of those of an earlier run.

    Returns the files' URLs. Without matplotlib, a line takes the place of the pictures.
    """
    contents = {
        FRONTIER: _parquet(list(report.frontier())),
        RELIABILITY: _parquet(list(report.reliability())),
        DOCUMENT: json.dumps(report_document(report, reading, title), indent=2, allow_nan=False).encode(),
        PAGE: report_page(report, reading, title).encode(),
    }
    pictures = {
        FRONTIER_PICTURE: partial(draw_front, report, reading, title),
        RELIABILITY_PICTURE: partial(draw_reliability, report, reading, title),
    }
    return write_outputs(folder, contents, pictures)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    return bytes(sink.getvalue())


SHOWN: Mapping[Measure, str] = {
    "accuracy": "accuracy",
    "ece": "ECE",
    "ace": "ACE",
    "nll": "NLL",
    "brier": "Brier",
    "confidence": "confidence",
    "overconfidence": "overconfidence",
}
"""the measures of the printed table, and their titles"""


def report_document(report: CalibrationReport, reading: Reading, title: str) -> dict[str, Any]:
    """Return what is printed as plain values."""
    verdicts = [{**vars(verdict), "shares": dict(verdict.shares)} for verdict in report.verdicts]
    return {
        "title": title,
        "questions": dict(report.questions),
        "left_out": dict(report.left_out),
        "shown": report.shown_half,
        "reading": reading,
        "models": table_rows(report, reading),
        "reliability": [
            {"model": point_name(point), "bins": _bins(point, report.settings.bins)}
            for point in shown_points(report, reading)
        ],
        "verdicts": verdicts,
    }


def _bins(point: PointMeasures, bins: int) -> list[dict[str, float]]:
    """Return the bins of confidence that have a question."""
    found = reliability(point.predictions.correct, point.predictions.confidence, bins)
    return [vars(bin_) for bin_ in found if bin_.questions]


def table_rows(report: CalibrationReport, reading: Reading) -> list[dict[str, Any]]:
    """Return the printed table as plain values: a row for each model, `[value, low, high]` for each measure."""
    return [
        {
            "model": point_name(point),
            "weight": point.weight,
            "temperature": point.temperature,
            **{name: list(astuple(point.estimates[name])) for name in SHOWN},
            "on_front": point.on_front,
            "front_share": point.front_share,
        }
        for point in _ordered(report.measures[reading, report.shown_half])
    ]


def _ordered(points: Sequence[PointMeasures]) -> list[PointMeasures]:
    """Return the points in the order of λ, and after them those with a temperature."""
    return sorted(points, key=lambda point: (point.temperature is not None, point.weight or 0.0))


def report_page(report: CalibrationReport, reading: Reading, title: str) -> str:
    """Return the report as a page in Markdown: the verdicts and the table."""
    header = ["model", *SHOWN.values(), "front"]
    rows = [
        [
            markdown(row["model"]),
            *(_shown(row[name]) for name in SHOWN),
            "" if row["front_share"] is None else f"{row['front_share']:.0%}",
        ]
        for row in table_rows(report, reading)
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
    parts = [f"# {markdown(title)}", *(markdown(line) for line in remarks(report, reading)), table]
    return "\n\n".join(parts) + "\n"


def _shown(cell: Sequence[float]) -> str:
    value, low, high = cell
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def remarks(report: CalibrationReport, reading: Reading) -> list[str]:
    """Return sentences about what was measured, and the verdicts."""
    half, settings = report.shown_half, report.settings
    of_half = "the test half: " if report.is_sweep else ""
    lines = [
        f"{of_half}{report.questions[half]:,} questions in {report.clusters[half]:,} clusters, reading `{reading}`, "
        f"{settings.bins} bins; 95 % intervals of {settings.resamples:,} resamples that all models share; front: the "
        "share of resamples in which no other model is as accurate and as well calibrated"
    ]
    lines += [f"left out, {reason}: {count:,}" for reason, count in report.left_out.items()]
    sentences: dict[str, list[str]] = {}
    for verdict in report.verdicts:
        sentences.setdefault(verdict.sentence, []).append(verdict.reading)
    return lines + [f"{', '.join(readings)}: {sentence}" for sentence, readings in sentences.items()]
