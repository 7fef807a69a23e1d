"""The picture of an audit: how far targets are from their exact values. Needs matplotlib (extra `pictures`)."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alm_pipeline.audit.chunks import FORMS
from alm_pipeline.audit.numbers import AuditReport, is_certain
from alm_pipeline.audit.places import BY, By
from alm_pipeline.config import Debias
from storage.errors import UserError
from storage.printed.inert import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS: Mapping[Debias, str] = {"none": "#9e9e9e", "end": "#e07b39", "both": "#2a6fb0"}
_LABELS: Mapping[Debias, str] = {"none": "no debiasing", "end": "debiased at the end", "both": "at both ends"}
_INK, _GRID = "#333333", "#dddddd"
_GROUPINGS: tuple[By, ...] = ("end", "start", "script", "bytes", "text", "position")
_LEAST = 1e-5
"""nats: smaller errors are drawn here"""


def draw_audit(report: AuditReport) -> bytes:
    """Return a PNG, with the same bytes for the same report. Raises UserError if matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("the picture needs matplotlib: pip install 'alm-pipeline[pictures]'") from error
    sides = list(report.tokens)
    heights = [3.2, *(0.9 + 0.42 * _most_groups(report, by) for by in _GROUPINGS)]
    figure = Figure(figsize=(7.6 * len(sides), sum(heights) + 1.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), len(sides), squeeze=False, height_ratios=heights)
    for column, side in enumerate(sides):
        _draw_distribution(axes[0, column], report, side)
        for row, by in enumerate(_GROUPINGS, start=1):
            _draw_groups(axes[row, column], report, side, by)
    of = f", {report.source}" if report.source else ""
    title = f"{one_line(report.student or report.teacher)}{of}: targets of chunks against byte-prefix sums"
    figure.suptitle(title, fontsize=13, color=_INK, parse_math=False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(FORMS), frameon=False, fontsize=11)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _most_groups(report: AuditReport, by: By) -> int:
    return max((len(_names(report, side, by)) for side in report.tokens), default=0)


def _names(report: AuditReport, side: str, by: By) -> list[str]:
    found = (row.name for row in report.numbers if (row.side, row.by) == (side, by) and row.p90 is not None)
    return list(dict.fromkeys(found))


def _draw_distribution(axes: "Axes", report: AuditReport, side: str) -> None:
    """Draw the share of chunks whose target is at least this far away."""
    for form in FORMS:
        errors = [
            abs(chunk.error)
            for chunk in report.chunks
            if (chunk.side, chunk.form) == (side, form) and is_certain(chunk, report.tolerance)
        ]
        values = np.sort(np.maximum(errors, _LEAST))
        shares = 1 - np.arange(len(values)) / max(1, len(values))
        axes.step(values, shares, where="pre", color=_COLORS[form], linewidth=2, label=_LABELS[form])
    axes.set_xscale("log")
    axes.set_xlim(_LEAST, None)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"{side}: share of chunks at least so far from the exact value", loc="left", fontsize=11)
    axes.set_xlabel("nats", color=_INK)
    _style(axes)


def _draw_groups(axes: "Axes", report: AuditReport, side: str, by: By) -> None:
    """Draw bars to the 90 % quantile and marks at the median, for each group and form."""
    names = _names(report, side, by)
    numbers = {(row.name, row.form): row for row in report.numbers if (row.side, row.by) == (side, by)}
    for place, form in enumerate(FORMS):
        rows = [numbers.get((name, form)) for name in names]
        at = np.arange(len(names)) + 0.26 * (place - 1)
        axes.barh(at, [_drawn(row.p90 if row else None) for row in rows], 0.24, color=_COLORS[form], left=_LEAST)
        axes.plot([_drawn(row.median if row else None) for row in rows], at, "|", color=_INK, markersize=7)
    axes.set_xscale("log")
    axes.set_xlim(_LEAST, 20)
    labels = [_label(name, [numbers.get((name, form)) for form in FORMS]) for name in names]
    axes.set_yticks(np.arange(len(names)), labels)
    axes.invert_yaxis()
    axes.set_title(f"{side}, {BY[by]}: 90 % quantile (mark: median), nats", loc="left", fontsize=11)
    _style(axes)


def _drawn(value: float | None) -> float:
    return _LEAST if value is None else max(value, _LEAST)


def _label(name: str, rows: Sequence[object]) -> str:
    chunks = max((getattr(row, "chunks", 0) for row in rows), default=0)
    return f"{name}  ({chunks:,})"


def _style(axes: "Axes") -> None:
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)
