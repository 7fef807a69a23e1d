"""The pictures of a comparison: quality against tokens and seconds while students are trained, and the measures."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alm_pipeline.methods.report import ComparisonReport, Training
from alm_pipeline.methods.statistics import Estimate, Measure
from storage.errors import UserError
from storage.printed.inert import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f5f5f", "#8c6d31")
_INK, _GRID = "#3b3b3b", "#e4e4e4"
_QUALITIES = {"bits_per_byte": "bits per byte", "word_kl": "KL per word, nats"}
_TOKENS, _SECONDS = "student tokens", "seconds of training"

Floats = npt.NDArray[np.float64]


def draw_quality(report: ComparisonReport) -> bytes:
    """Return a PNG: held-out quality while training, against student tokens and against seconds.

    The thin lines are single seeds, thick ones their mean. Raises UserError if matplotlib is missing.
    """
    figure = _figure(10.4, 7.4)
    axes = figure.subplots(2, 2, squeeze=False)
    for row, (column, label) in zip(axes, _QUALITIES.items(), strict=True):
        for axis, unit in zip(row, (_TOKENS, _SECONDS), strict=True):
            for method in report.methods:
                _draw_method(axis, _trainings(report, method), column, unit, _color(report, method))
            _style(axis, unit, label)
    _legend(figure, [method for method in report.methods if any(_trainings(report, method))], report)
    figure.suptitle(one_line(f"{report.corpus}, held out, while training"), color=_INK, parse_math=False)
    return _png(figure)


def _trainings(report: ComparisonReport, method: str) -> list[Training]:
    return [training for training in report.trainings if training.method == method and training.cost()]


def _draw_method(axis: "Axes", trainings: Sequence[Training], column: str, unit: str, color: str) -> None:
    curves = [curve for training in trainings if (curve := _curve(training, column, unit))]
    for x, y in curves:
        axis.plot(x, y, color=color, alpha=0.3, linewidth=0.9)
    if curves:
        length = min(len(x) for x, _ in curves)  # a training that stopped early ends the mean
        x, y = (np.mean([curve[part][:length] for curve in curves], axis=0) for part in (0, 1))
        axis.plot(x, y, color=color, linewidth=2, marker="o", markersize=3.5)


def _curve(training: Training, column: str, unit: str) -> tuple[Floats, Floats] | None:
    """Return a student's evaluations: where each was, and its value; None without any."""
    evaluations, speed = training.curves.evaluations, training.curves.speed
    if column not in evaluations:
        return None
    known = np.isfinite(evaluations[column])
    amount = speed["tokens" if unit == _TOKENS else "seconds"]
    so_far = np.concatenate([[0.0], np.cumsum(amount)])
    steps = np.concatenate([[0.0], speed["step"]])
    return (np.interp(evaluations["step"][known], steps, so_far), evaluations[column][known]) if known.any() else None


def draw_measures(report: ComparisonReport) -> bytes:
    """Return a PNG: every measure, a row per domain, each method's mean over seeds.

    The bars are the 95 % intervals of the difference from the reference, which is the dashed line.
    """
    rows = [[measure for measure in report.measures if measure.domain == domain] for domain in report.domains]
    across = max(map(len, rows))
    figure = _figure(3.4 * across + 1, (0.9 + 0.3 * len(report.methods)) * len(rows) + 0.6)
    for axes, of_domain in zip(figure.subplots(len(rows), across, squeeze=False, sharey=True), rows, strict=True):
        for axis, measure in zip(axes, of_domain, strict=False):
            _draw_measure(axis, measure, report)
        for axis in axes[len(of_domain) :]:
            axis.set_visible(False)
    title = (
        f"Trained on {report.corpus}, {report.seeds} seed{'s'[: report.seeds != 1]}; bars: 95 % intervals of the "
        f"difference from {report.methods[0]}"
    )
    figure.suptitle(one_line(title), fontsize=10, color=_INK, parse_math=False)
    return _png(figure)


def _draw_measure(axis: "Axes", measure: Measure, report: ComparisonReport) -> None:
    for place, method in enumerate(report.methods):
        value, _ = measure.values.get(method, Estimate(math.nan, math.nan))
        _, half = measure.differences.get(method, Estimate(math.nan, math.nan))
        half = 0.0 if math.isnan(half) else half
        axis.errorbar(value, place, xerr=half, fmt="o", color=_color(report, method), markersize=5, capsize=3)
    if report.methods[0] in measure.values:
        axis.axvline(measure.values[report.methods[0]].value, color=_INK, linestyle=(0, (4, 3)), linewidth=0.9)
    axis.set_yticks(range(len(report.methods)), [one_line(method) for method in report.methods])
    axis.set_ylim(len(report.methods) - 0.5, -0.5)
    of = " (bars: of the seeds alone)" if measure.varied == "seeds" else ""
    axis.set_title(one_line(f"{measure.domain}: {measure.name}{of}"), fontsize=9, color=_INK, parse_math=False)
    axis.locator_params(axis="x", nbins=4)
    axis.grid(axis="x", color=_GRID)
    _no_frame(axis, ("top", "right", "left"))


def _color(report: ComparisonReport, method: str) -> str:
    return _COLORS[report.methods.index(method) % len(_COLORS)]


def _style(axis: "Axes", x_label: str, y_label: str) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_xlabel(x_label, color=_INK)
    axis.set_ylabel(y_label, color=_INK)
    if x_label == _TOKENS:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(color=_GRID)
    _no_frame(axis, ("top", "right"))


def _no_frame(axis: "Axes", sides: Sequence[str]) -> None:
    axis.set_axisbelow(True)
    axis.spines[list(sides)].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=8)


def _legend(figure: "Figure", methods: Sequence[str], report: ComparisonReport) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=_color(report, method), linewidth=2.5) for method in methods]
    names = [f" {one_line(method)}" for method in methods]  # one that begins with _ would be left out
    legend = figure.legend(lines, names, loc="outside lower center", frameon=False, ncols=min(6, max(1, len(methods))))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("pictures need matplotlib: pip install 'alm-pipeline[pictures]'") from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: "Figure") -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
