"""The pictures of a calibration report. They need matplotlib (extra `pictures`).

The front: accuracy against ECE, with NLL and ECE along λ. The reliability: a panel for each model, with the share of
right answers in each bin of confidence beside the diagonal of a calibrated model.
"""

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from alm_pipeline.calibration.report.measures import Measure, reliability
from alm_pipeline.calibration.report.points import CalibrationReport, PointMeasures
from alm_pipeline.calibration.report.settings import Reading
from storage.errors import UserError
from storage.printed.inert import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GRID, _BAND = "#333333", "#e2e2e2", "#2a6fb0"
_BASE, _TUNED, _MERGE, _SCALED, _CHOSEN = "#7a7a7a", "#d1495b", "#2a6fb0", "#e09f3e", "#1b7f5a"
_COLORS = {"base": _BASE, "tuned": _TUNED, "merge": _MERGE, "model": _MERGE}
_OTHERS = ("#2a6fb0", "#e07b39", "#1b7f5a", "#8e5ea2", "#c44e52", "#5f5f5f", "#b8860b", "#17a2b8")
_PANELS_PER_ROW, _SQUARE = 3, 4
_MOST_PANELS = 9
_TITLE_POINTS, _LETTER_INCHES = 13, 0.115


def draw_front(report: CalibrationReport, reading: Reading, title: str) -> bytes:
    """Return a PNG of accuracy against ECE, and of a sweep also of NLL and of accuracy along λ.

    The same report gives the same bytes. Raises UserError if matplotlib is missing.
    """
    figure = _figure((15.5, 5.2) if report.is_sweep else (7.6, 5.6))
    points = report.measures[reading, report.shown_half]
    axes = figure.subplots(1, 3 if report.is_sweep else 1, squeeze=False)[0]
    _draw_plane(axes[0], points, _chosen(report, reading))
    if report.is_sweep:
        _draw_along(axes[1], points, "nll", "NLL (nats)", _chosen(report, reading))
        _draw_along(axes[2], points, "ece", "ECE", _chosen(report, reading))
    half = " (test half)" if report.is_sweep else ""
    questions = f"{report.questions[report.shown_half]:,} questions{half}"
    _set_title(figure, f"{one_line(title)}: {questions}, {_READINGS[reading]}")
    return _png(figure)


def draw_reliability(report: CalibrationReport, reading: Reading, title: str) -> bytes:
    """Return a PNG of the reliability of the models that matter: parents, the chosen merge, models with a temperature.

    Raises UserError if matplotlib is missing.
    """
    points = shown_points(report, reading)
    columns = 2 if len(points) == _SQUARE else min(len(points), _PANELS_PER_ROW)
    rows = -(-len(points) // columns)
    figure = _figure((4.6 * columns, 4.6 * rows + 0.6))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, point in zip(axes, points, strict=False):
        _draw_bins(panel, point, report.settings.bins, _chosen(report, reading))
    for panel in axes[len(points) :]:
        panel.set_visible(False)
    _set_title(figure, f"{one_line(title)}: reliability, {_READINGS[reading]}")
    return _png(figure)


_READINGS = {
    "sum": "summed log-probabilities",
    "token": "log-probabilities per token",
    "bytes": "log-probabilities per byte",
}


def _set_title(figure: "Figure", title: str) -> None:
    """Write a title above all panels, in as many lines as it needs: folders of models have long names."""
    lines = textwrap.fill(title, int(figure.get_figwidth() / _LETTER_INCHES))
    figure.suptitle(lines, fontsize=_TITLE_POINTS, color=_INK, parse_math=False)


def _figure(size: tuple[float, float]) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("the picture needs matplotlib: pip install 'alm-pipeline[pictures]'") from error
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: "Figure") -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _chosen(report: CalibrationReport, reading: Reading) -> float | None:
    return next((verdict.chosen for verdict in report.verdicts if verdict.reading == reading), None)


def shown_points(report: CalibrationReport, reading: Reading) -> list[PointMeasures]:
    """Return what reliability is drawn of; of a sweep the parents, the chosen merge and the scaled child."""
    points = report.measures[reading, report.shown_half]
    if not report.is_sweep:
        return list(points[:_MOST_PANELS])
    chosen = _chosen(report, reading)
    merges = [point for point in points if point.role == "merge"]
    best = min(merges, key=lambda point: point.value("ece"))
    merge = next((point for point in merges if point.weight == chosen), best)
    return [
        *(point for point in points if point.role == "base"),
        merge,
        *(point for point in points if point.role == "tuned"),
    ]


def _draw_plane(axes: "Axes", points: Sequence[PointMeasures], chosen: float | None) -> None:
    """Draw accuracy against ECE, with intervals, the line along λ, and the front in rings."""
    line = _line(points)
    if line:
        axes.plot([p.value("ece") for p in line], [p.value("accuracy") for p in line], color=_MERGE, lw=1.2, alpha=0.5)
    for number, point in enumerate(points):
        x, y = point.estimates["ece"], point.estimates["accuracy"]
        color = _color(point, number, chosen)
        axes.errorbar(
            x.value,
            y.value,
            xerr=[[max(0.0, x.value - x.low)], [max(0.0, x.high - x.value)]],
            yerr=[[max(0.0, y.value - y.low)], [max(0.0, y.high - y.value)]],
            fmt="none",
            ecolor=color,
            elinewidth=1.0,
            # only those that are compared: crossing bars of all points would hide everything
            alpha=0.7 if point.on_front or point.role != "merge" else 0.15,
        )
        axes.plot(x.value, y.value, "D" if point.temperature else "o", markersize=6.5, color=color)
        if point.on_front:
            axes.plot(x.value, y.value, "o", markersize=13, markerfacecolor="none", color=_CHOSEN, lw=1.5)
    _label_points(axes, points)
    axes.set_xlabel("ECE (left is better)", color=_INK)
    axes.set_ylabel("accuracy", color=_INK)
    axes.set_title("Accuracy against calibration (rings: the front)", loc="left", fontsize=11)
    _style(axes)


def _label_points(axes: "Axes", points: Sequence[PointMeasures]) -> None:
    """Write names beside points: those that matter first, and others where no name is in their way."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    placed: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda each: each.role == "merge" and not each.on_front):
        x = (point.value("ece") - left) / (right - left)
        y = (point.value("accuracy") - bottom) / (top - bottom)
        width = _LETTER * len(point_name(point))
        places = [(x + 0.02, y + 0.012, (8, 5)), (x + 0.02, y - 0.03, (8, -13)), (x - 0.02 - width, y + 0.012, (-8, 5))]
        free = [place for place in places if not any(_overlap(place[:2], width, other) for other in placed)]
        if not free:
            continue
        placed.append((*free[0][:2], width))
        axes.annotate(
            point_name(point),
            (point.value("ece"), point.value("accuracy")),
            textcoords="offset points",
            xytext=free[0][2],
            ha="left" if free[0][2][0] > 0 else "right",
            fontsize=9,
            color=_INK,
            parse_math=False,
        )


_LETTER, _LINE = 0.017, 0.042
"""the width of a letter and the height of a line, as parts of the axes"""


def _overlap(place: tuple[float, ...], width: float, other: tuple[float, float, float]) -> bool:
    return place[0] < other[0] + other[2] and other[0] < place[0] + width and abs(place[1] - other[1]) < _LINE


def _draw_along(
    axes: "Axes", points: Sequence[PointMeasures], measure: Measure, title: str, chosen: float | None
) -> None:
    """Draw a measure along λ with its interval, the chosen λ, and the child with a temperature as a line."""
    line = _line(points)
    weights = [point.weight or 0.0 for point in line]
    estimates = [point.estimates[measure] for point in line]
    values = [estimate.value for estimate in estimates]
    lows, highs = zip(*((estimate.low, estimate.high) for estimate in estimates), strict=True)
    axes.fill_between(weights, lows, highs, color=_BAND, alpha=0.16, linewidth=0, label="95 % interval")
    axes.plot(weights, values, "o-", color=_MERGE, markersize=4.5, label="merges")
    for point in line:
        if point.role in ("base", "tuned"):
            axes.plot(point.weight or 0.0, point.value(measure), "o", color=_COLORS[point.role], markersize=8)
            axes.annotate(
                point.role,
                (point.weight or 0.0, point.value(measure)),
                textcoords="offset points",
                xytext=(0, 10),
                ha="center",
                fontsize=9,
            )
    for point in points:
        if point.temperature:
            label = f"child at temperature {point.temperature:.2f}"
            axes.axhline(point.value(measure), color=_SCALED, linestyle="--", linewidth=1.4, label=label)
    if chosen is not None:
        axes.axvline(chosen, color=_CHOSEN, linestyle=":", linewidth=1.6, label=f"λ = {chosen:g}, chosen")
    axes.set_xlabel("λ (0: base, 1: tuned child)", color=_INK)
    axes.set_title(f"{title} along λ", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    _style(axes)


def _draw_bins(axes: "Axes", point: PointMeasures, bins: int, chosen: float | None) -> None:
    """Draw the share of right answers in each bin as a bar, and how many questions each has below."""
    table = reliability(point.predictions.correct, point.predictions.confidence, bins)
    filled = [bin_ for bin_ in table if bin_.questions]
    most = max(bin_.questions for bin_ in filled)
    color, width = _color(point, 0, chosen), 1 / bins
    axes.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1.1)
    for bin_ in filled:
        axes.bar(bin_.low, bin_.accuracy, width, align="edge", color=color, edgecolor="white", alpha=0.85)
        gap = bin_.confidence - bin_.accuracy
        axes.bar(bin_.low, gap, width, bottom=bin_.accuracy, align="edge", color="none", edgecolor=color, hatch="///")
        axes.bar(bin_.low, -0.12 * bin_.questions / most, width, align="edge", color="#b5b5b5", edgecolor="white")
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.14, 1)
    axes.set_yticks(np.linspace(0, 1, 6))
    title = f"{point_name(point)}: accuracy {point.value('accuracy'):.3f}, ECE {point.value('ece'):.3f}"
    axes.set_title(title, loc="left", fontsize=10.5, parse_math=False)
    axes.set_xlabel("confidence (below: questions per bin)", color=_INK)
    axes.set_ylabel("share of right answers", color=_INK)
    _style(axes)


def _line(points: Sequence[PointMeasures]) -> list[PointMeasures]:
    """Return the points of a sweep in the order of λ."""
    found = [point for point in points if point.weight is not None and point.temperature is None]
    return sorted(found, key=lambda point: point.weight or 0.0)


def _color(point: PointMeasures, number: int, chosen: float | None) -> str:
    if point.temperature:
        return _SCALED
    if point.role == "model":
        return _OTHERS[number % len(_OTHERS)]
    return _CHOSEN if point.role == "merge" and point.weight == chosen else _COLORS[point.role]


def point_name(point: PointMeasures) -> str:
    """Return what tables and pictures call a point."""
    name = f"λ = {point.weight:g}" if point.role == "merge" else one_line(point.name)
    return f"{name}, T = {point.temperature:.2f}" if point.temperature else name


def _style(axes: "Axes") -> None:
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
