"""Draws the curves of training runs in one picture, from the steps and evaluations in each student's folder.

The curves come from a student's Parquet files and manifest. Each quantity has a panel, and each run a color: pale for
the single steps, full for their running mean.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alm_pipeline.naming.names import names_apart
from storage.errors import UserError, user_error
from storage.folders import load_folder_manifest
from storage.printed.inert import one_line
from storage.urls import join_url, read_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "curves.png"
"""the picture of one student, in its folder"""
METRICS, EVALUATIONS, SPEED = "metrics.parquet", "evaluations.parquet", "runs/speed.parquet"
METRICS_BY_SOURCE, EVALUATIONS_BY_SOURCE = "metrics_by_source.parquet", "evaluations_by_source.parquet"
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f5f5f", "#8c6d31")
_INK, _GRID = "#3b3b3b", "#e4e4e4"
_SMOOTHED_FROM = 20
_FLAT = 0.02
"""the smallest height of a panel, relative to its values: a curve that hardly changes should look flat"""

_PANEL_WIDTH, _PANEL_HEIGHT, _TITLE_HEIGHT = 5.2, 3.5, 0.5
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.85, 0.2, 0.6, 0.4
"""the margins of a panel, in inches: for the labels and numbers of its axes, and its title"""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainingCurves:
    """The data that is drawn for one student: columns by name, and held-out bits per byte by model."""

    name: str
    metrics: Mapping[str, Column]
    evaluations: Mapping[str, Column] = field(default_factory=dict)
    speed: Mapping[str, Column] = field(default_factory=dict)
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)
    """teacher, student_before, student_after"""
    sources: Mapping[str, "TrainingCurves"] = field(default_factory=dict)
    """of a finished student of a mixture, those of each source"""

    @property
    def last_step(self) -> float:
        steps = [columns["step"].max() for columns in (self.metrics, self.evaluations) if len(columns.get("step", ()))]
        return float(max(steps, default=0.0))


def read_curves(url: str, bits_per_byte: Mapping[str, float] | None = None) -> TrainingCurves:
    """Read the curves of the student at a URL. Raises UserError if it has none.

    `bits_per_byte` is for a student that has no manifest yet.
    """
    metrics = _columns(join_url(url, METRICS))
    if metrics is None:
        raise UserError(f"{url} has no {METRICS}: name the folder of a trained student (`alm list ROOT` lists them)")
    manifest = load_folder_manifest(url)
    results: Mapping[str, Any] = manifest.results if manifest else {}
    bits_in_manifest = results.get("held_out_bits_per_byte", {})
    return TrainingCurves(
        url.rstrip("/").rsplit("/", 1)[-1],
        metrics,
        evaluations=_columns(join_url(url, EVALUATIONS)) or {},
        speed=_columns(join_url(url, SPEED)) or {},
        bits_per_byte=bits_in_manifest if bits_per_byte is None else bits_per_byte,
        sources=_source_curves(url, results.get("sources", {})),
    )


def _source_curves(url: str, results: Mapping[str, Any]) -> dict[str, TrainingCurves]:
    """Return the curves of each source that the results of a mixture name, in the mixture's order."""
    if not results:
        return {}
    metrics, evaluations = (_by_source(join_url(url, file)) for file in (METRICS_BY_SOURCE, EVALUATIONS_BY_SOURCE))
    return {
        name: TrainingCurves(
            name,
            metrics.get(name, {}),
            evaluations.get(name, {}),
            bits_per_byte=results.get(name, {}).get("bits_per_byte", {}),
        )
        for name in dict.fromkeys([*evaluations, *metrics])
    }


def read_named_curves(urls: Sequence[str]) -> list[TrainingCurves]:
    """Read the curves of several students, named by what makes them differ; of one alone, named by what it is.

    Raises UserError as `read_curves` does. A student without a manifest keeps its folder's name.
    """
    runs = [read_curves(url) for url in urls]
    configs = {run.name: _configuration(url) for run, url in zip(runs, urls, strict=True)}
    names = names_apart(configs)
    if len(configs) == 1:
        names |= {folder: _title(folder, config, names[folder]) for folder, config in configs.items()}
    return [replace(run, name=names[run.name]) for run in runs]


def _configuration(url: str) -> Mapping[str, Any]:
    manifest = load_folder_manifest(url)
    recorded = manifest.provenance.get("configuration") if manifest else None
    return recorded if isinstance(recorded, Mapping) else {}


def _title(folder: str, config: Mapping[str, Any], name: str) -> str:
    return f"{folder.rpartition('-')[0]}: {name}" if config else folder


def _columns(url: str) -> dict[str, Column] | None:
    """Return a Parquet file's columns by name; None without the file. Raises UserError if they are not such columns."""
    content = read_bytes(url)
    if content is None:
        return None
    with _valid(url):
        return _numbers(pq.read_table(pa.BufferReader(content)))


def _by_source(url: str) -> dict[str, dict[str, Column]]:
    """Return a Parquet file's columns by source and name; nothing without the file. Raises UserError as `_columns`."""
    content = read_bytes(url)
    if content is None:
        return {}
    with _valid(url):
        table = pq.read_table(pa.BufferReader(content))
        sources, numbers = table["source"], table.drop_columns("source")
        return {name: _numbers(numbers.filter(pc.equal(sources, name))) for name in sources.unique().to_pylist()}


def _valid(url: str) -> AbstractContextManager[None]:
    return user_error(f"{url}: is not a valid Parquet file of numbers by step", "`alm repair --checksums` its folder")


def _numbers(table: pa.Table) -> dict[str, Column]:
    """Return a table's columns by name, with NaN for null. Raises ValueError if `step` is missing, or lacks a value."""
    columns: dict[str, Column] = {name: table[name].to_numpy().astype(np.float64) for name in table.column_names}
    if not np.isfinite(columns.get("step", np.nan)).all():
        raise ValueError("it has no column step, or one that lacks a value")
    return columns


def smooth(values: Column) -> Column:
    """Return the mean of finite values over a fortieth of the steps around each. Fewer than 20 are not smoothed."""
    half = len(values) // 80
    if len(values) < _SMOOTHED_FROM:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - max(1, half), 0)
    end = np.minimum(np.arange(len(values)) + max(1, half) + 1, len(values))
    means: Column = (sums[end] - sums[start]) / (end - start)
    return means


def draw_curves(runs: Sequence[TrainingCurves]) -> bytes:
    """Return a PNG of the runs, with the same bytes for the same runs. Raises UserError if matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("curves need matplotlib: pip install 'alm-pipeline[pictures]'") from error
    panels = [panel for panel in PANELS if any(panel.has(run) for run in runs)]
    across = min(3, max(1, len(panels)))
    down = -(-len(panels) // across)
    legend = 0.0 if len(runs) == 1 else 0.3 + 0.22 * len(runs)
    figure = Figure(figsize=(_PANEL_WIDTH * across, _PANEL_HEIGHT * down + _TITLE_HEIGHT + legend), dpi=110)
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        _draw_panel(figure.add_axes(_place(figure, across, number)), panel, runs)
    _label_runs(figure, runs)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _place(figure: "Figure", across: int, number: int) -> tuple[float, float, float, float]:
    """Return the left, bottom, width and height of a panel, relative to the figure.

    Fixed margins: matplotlib's layouts draw everything once more to find them, in two thirds of the time of a picture.
    """
    (width, height), (row, column) = figure.get_size_inches(), divmod(number, across)
    left, bottom = _PANEL_WIDTH * column + _LEFT, height - _TITLE_HEIGHT - _PANEL_HEIGHT * (row + 1) + _BOTTOM
    panel_width, panel_height = _PANEL_WIDTH - _LEFT - _RIGHT, _PANEL_HEIGHT - _BOTTOM - _TOP
    return left / width, bottom / height, panel_width / width, panel_height / height


def _label_runs(figure: "Figure", runs: Sequence[TrainingCurves]) -> None:
    from matplotlib.lines import Line2D

    if len(runs) == 1:
        figure.suptitle(one_line(runs[0].name), fontsize=12, color=_INK, parse_math=False)
        return
    lines = [Line2D([], [], color=_color(number), linewidth=2.5) for number in range(len(runs))]
    names = [f" {one_line(run.name)}" for run in runs]  # one that begins with _ would be left out
    legend = figure.legend(lines, names, loc="lower center", frameon=False, fontsize=10, ncols=1)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign does not start a formula


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


@dataclass(frozen=True)
class Panel:
    """A quantity by step: where it is, and how it is drawn."""

    title: str
    unit: str
    part: str
    """the field of `TrainingCurves` that has the column"""
    column: str
    log: bool = False
    from_zero: bool = False
    exact: bool = False
    """drawn without smoothing: it has no noise"""
    large: bool = False

    @property
    def has_results(self) -> bool:
        """Whether the panel also shows a finished student's results."""
        return self.column == "bits_per_byte"

    def values(self, run: TrainingCurves) -> tuple[Column, Column]:
        """Return the steps that have a value, and their values."""
        columns: Mapping[str, Column] = getattr(run, self.part)
        if self.column not in columns:
            return np.empty(0), np.empty(0)
        finite = np.isfinite(columns[self.column])
        return columns["step"][finite], columns[self.column][finite]

    def has(self, run: TrainingCurves) -> bool:
        return len(self.values(run)[0]) > 0 or (self.has_results and bool(run.bits_per_byte))


def _draw_panel(axes: "Axes", panel: Panel, runs: Sequence[TrainingCurves]) -> None:
    curves = [panel.values(run) for run in runs]
    for number, (steps, values) in enumerate(curves):
        _draw_steps(axes, steps, values, _color(number), panel, 0.25 if len(runs) == 1 else 0.12)
    _scale(axes, np.concatenate([values for _, values in curves]), panel)
    if panel.has_results:
        _draw_bits(axes, runs, panel)
    # at fixed places, which need no measuring of the numbers beside them
    axes.set_title(panel.title, loc="left", fontsize=12, color=_INK, y=1.0)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel(panel.unit, color=_INK)
    axes.xaxis.set_label_coords(0.5, -0.3 / (_PANEL_HEIGHT - _BOTTOM - _TOP))
    axes.yaxis.set_label_coords(-0.55 / (_PANEL_WIDTH - _LEFT - _RIGHT), 0.5)
    _style_axes(axes, max(run.last_step for run in runs), panel.large)


def _draw_steps(axes: "Axes", steps: Column, values: Column, color: str, panel: Panel, pale: float) -> None:
    noisy = not panel.exact and len(steps) >= _SMOOTHED_FROM
    if noisy:
        axes.plot(steps, values, color=color, alpha=pale, linewidth=0.8)
    marker = "o" if panel.part == "evaluations" or len(steps) == 1 else None
    axes.plot(steps, smooth(values) if noisy else values, color=color, linewidth=1.8, marker=marker, markersize=4)


def _scale(axes: "Axes", values: Column, panel: Panel) -> None:
    """Set limits that single spikes do not stretch, and that a curve which hardly changes does not fill."""
    if not len(values):
        return
    low, high = np.quantile(values, [0.0, 1.0] if len(values) < 200 or panel.exact else [0.005, 0.995])
    if panel.log and low > 0 and high > 20 * low:
        _scale_log(axes, low, high)
        return
    low = min(0.0, low) if panel.from_zero else low
    margin = 0.06 * max(high - low, _FLAT * abs(high), 1e-12)
    axes.set_ylim(low if panel.from_zero else low - margin, high + margin)


def _scale_log(axes: "Axes", low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, high * 1.3)
    # over few decades, powers of ten alone would be too few ticks
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_number))


def _number(value: float, _: object = None) -> str:
    """Format a number as 0.05, 320, or 2e-4."""
    if not 0 < abs(value) < 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _style_axes(axes: "Axes", last_step: float, large: bool) -> None:
    """Style axes, ticks and grid. `large` values have ticks such as 320k."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    axes.set_xlim(-0.02 * max(last_step, 1.0), 1.02 * max(last_step, 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_formatter(EngFormatter(sep="") if large else FuncFormatter(_number))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)


def _draw_bits(axes: "Axes", runs: Sequence[TrainingCurves], panel: Panel) -> None:
    """Draw the teacher and the student before training as lines, and the student after training as a point."""
    values = [value for run in runs for value in (*run.bits_per_byte.values(), *panel.values(run)[1])]
    if values:
        _scale(axes, np.array([*values, 1.02 * max(values)]), panel)  # leaves room for the label above a line
    for who, style in (("teacher", (0, (6, 3))), ("student_before", (0, (1, 2)))):
        _draw_lines(axes, who.replace("_", " "), [run.bits_per_byte.get(who) for run in runs], style)
    for number, run in enumerate(runs):
        if (value := run.bits_per_byte.get("student_after")) is not None:
            axes.plot([run.last_step], [value], marker="D", markersize=7, color=_color(number), clip_on=False)
            if len(runs) == 1:  # labels of several runs would overlap
                _annotate(axes, run.last_step, value, f"after {value:.3f}", "right")


def _draw_lines(axes: "Axes", who: str, values: Sequence[float | None], style: Any) -> None:
    """Draw one labeled line if all runs have the same value, otherwise one line per run."""
    if len(set(values)) == 1 and values[0] is not None:
        axes.axhline(values[0], color=_INK, linestyle=style, linewidth=1.3)
        _annotate(axes, 0.0, values[0], f"{who} {values[0]:.3f}", "left")
        return
    for number, value in enumerate(values):
        if value is not None:
            axes.axhline(value, color=_color(number), linestyle=style, linewidth=1.3)


def _annotate(axes: "Axes", step: float, value: float, text: str, side: str) -> None:
    offset = (4, 5) if side == "left" else (-6, -15)
    over_curves = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    axes.annotate(
        text, (step, value), offset, textcoords="offset points", ha=side, fontsize=9, color=_INK, bbox=over_curves
    )


PANELS = (
    Panel("Loss", "weighted sum of its terms", "metrics", "loss", log=True),
    Panel("Divergence from the teacher", "KL per chunk, nats", "metrics", "kl", log=True),
    Panel("Held-out text", "bits per byte", "evaluations", "bits_per_byte", exact=True),
    Panel("Distance to the teacher, held out", "KL per word, nats", "evaluations", "word_kl", exact=True),
    Panel("Learning rate", "learning rate", "metrics", "learning_rate", exact=True, from_zero=True),
    Panel("Gradient", "norm before clipping", "metrics", "grad_norm", log=True),
    Panel("Speed", "student tokens per second", "speed", "tokens_per_second", from_zero=True, large=True),
)
