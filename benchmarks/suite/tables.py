"""The table and the picture of an experiment."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.outcomes import Interval, Outcomes, differences

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f5f5f", "#8c6d31")
_INK, _GRID = "#3b3b3b", "#e4e4e4"
Found = Mapping[str, Sequence[Outcomes]]
"""the outcomes of each seed by variant, the reference first"""


def markdown(found: Found) -> str:
    """Return a Markdown table: means, and the mean difference from the reference with its 95 % interval."""
    reference = next(iter(found.values()))
    columns = list(reference[0])
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, rows in found.items():
        cells = [_cell(rows, reference, column) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Outcomes], reference: Sequence[Outcomes], column: str) -> str:
    values = [row[column] for row in rows]
    reached = [value for value in values if value is not None]
    if len(reached) < len(values):
        return f"reached in {len(reached)} of {len(values)}"
    text = _number(Interval.of(reached).mean)
    changes = differences(rows, reference, column)
    if rows is reference or not changes:
        return text
    change = Interval.of(changes)
    half = "" if math.isnan(change.half) else f" ± {_number(change.half)}"
    return f"{text} ({'+' if change.mean > 0 else '−' if change.mean < 0 else ''}{_number(abs(change.mean))}{half})"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.01 or not value else f"{value:.1e}"


def draw(found: Found, title: str, file: Path) -> None:
    """Draw each outcome of all variants: a dot for each seed, and the mean with its 95 % interval."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    columns = list(next(iter(found.values()))[0])
    figure = Figure(figsize=(3.1 * len(columns), 1.3 + 0.36 * len(found)), layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        _panel(axis, found, column)
    axes[0].set_yticks(range(len(found)), list(found))
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=11, color=_INK)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def _panel(axis: "Axes", found: Found, column: str) -> None:
    for place, rows in enumerate(found.values()):
        values = [value for row in rows if (value := row[column]) is not None]
        if not values:
            continue
        color, interval = _COLORS[place % len(_COLORS)], Interval.of(values)
        axis.plot(values, [place] * len(values), "o", color=color, alpha=0.45, markersize=4)
        half = 0.0 if math.isnan(interval.half) else interval.half
        axis.errorbar(interval.mean, place, xerr=half, fmt="|", color=color, markersize=11, capsize=3, linewidth=1.4)
    axis.set_title(column, fontsize=9, color=_INK)
    axis.grid(axis="x", color=_GRID)
    if any(row[column] is not None for rows in found.values() for row in rows):
        axis.locator_params(axis="x", nbins=4)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4), useOffset=False)
    else:
        axis.text(0.5, 0.5, "not reached", transform=axis.transAxes, ha="center", color=_INK)
        axis.set_xticks([])
    axis.tick_params(labelsize=8, colors=_INK)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
