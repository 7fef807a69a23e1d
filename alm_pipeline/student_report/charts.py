"""The curves of the students as plain values, for the page's script to draw.

Of mixtures, what is measured by source has further charts: of one student with a line per source, of several with a
chart per source, in which each student has the color that it has in all of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from alm_pipeline.student_report.stored import ReportedStudent, number
from alm_pipeline.training.student.curves import PANELS, Column, Panel, TrainingCurves, smooth

_POINTS = 3200
"""of all students' curves in one chart; longer ones are means over steps in a row"""
_FEWEST_POINTS = 200
_LOG_RANGE = 20
"""a positive curve whose largest value is this many times its smallest has a logarithmic axis"""
_TABLE_ROWS = 10
_COLORS = 8
"""of the page's style, `c0` to `c7`"""
_INK = -1

Chart = dict[str, Any]
Colored = Mapping[int, TrainingCurves]
"""the curves of one chart, by the number of their color"""


def charts(students: Sequence[ReportedStudent]) -> dict[str, Any] | None:
    """Return a chart for each quantity that a student has."""
    runs = [student.curves for student in students]
    drawn = [*_charts(dict(enumerate(runs))), *_charts_by_source(runs)]
    return {"charts": drawn} if drawn else None


def _charts_by_source(runs: Sequence[TrainingCurves]) -> Iterator[Chart]:
    if len(runs) == 1:
        yield from _charts(dict(enumerate(runs[0].sources.values())), ", by source")
        return
    for name in dict.fromkeys(source for run in runs for source in run.sources):
        having = {place: run for place, run in enumerate(runs) if name in run.sources}
        named = {place: replace(run.sources[name], name=run.name) for place, run in having.items()}
        yield from _charts(named, f": {name}")


def _charts(runs: Colored, of: str = "") -> Iterator[Chart]:
    """Yield a chart for each quantity that one of the runs has; `of` follows its title."""
    for panel in PANELS:
        if any(panel.has(run) for run in runs.values()):
            yield _chart(panel, runs, of)


def _chart(panel: Panel, runs: Colored, of: str) -> Chart:
    series = [line for color, run in runs.items() for line in _series(panel, run, color, len(runs))]
    series += _references(runs) if panel.has_results else []
    values = [value for line in series for value in line["y"]]
    return {
        "title": panel.title + of,
        "unit": panel.unit,
        "log": panel.log and bool(values) and min(values) > 0 and max(values) > _LOG_RANGE * min(values),
        "zero": panel.from_zero,
        "series": series,
        "table": _table(series),
    }


def _series(panel: Panel, run: TrainingCurves, color: int, count: int) -> Iterator[dict[str, Any]]:
    steps, values = panel.values(run)
    points = max(_FEWEST_POINTS, _POINTS // count)
    if len(steps):
        smoothed = values if panel.exact else smooth(values)
        if count == 1 and smoothed is not values:
            yield _line("single steps", color, "pale", *_fewer(steps, values, points))
        kind = "points" if panel.part == "evaluations" or len(steps) == 1 else "line"
        yield _line(run.name, color, kind, *_fewer(steps, smoothed, points))


def _references(runs: Colored) -> list[dict[str, Any]]:
    """Return the teacher and the student before training as dashed lines: one if it is the same for all runs."""
    last = max(run.last_step for run in runs.values())
    lines = []
    for who, kind in (("teacher", "dashed"), ("student_before", "dotted")):
        values = [number(run.bits_per_byte.get(who)) for run in runs.values()]
        named = zip(runs.values(), values, runs, strict=True)
        title = who.replace("student_", "")
        places = [("", values[0], _INK)] if len(set(values)) == 1 else [(f"{r.name}: ", v, k) for r, v, k in named]
        for prefix, value, color in places:
            if value is not None:
                lines.append(_line(f"{prefix}{title}", color, kind, np.array([0.0, last]), np.array([value, value])))
    return lines


def _line(name: str, color: int, kind: str, steps: Column, values: Column) -> dict[str, Any]:
    return {
        "name": name,
        "color": "ink" if color == _INK else f"c{color % _COLORS}",
        "kind": kind,
        "x": _plain(steps),
        "y": _plain(values),
    }


def _plain(values: Column) -> list[float]:
    """Round to five digits: a page has thousands of numbers."""
    return [int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}") for value in values]


def _fewer(steps: Column, values: Column, most: int) -> tuple[Column, Column]:
    """Return at most `most` points: means over neighbors. A single step is not left out, but blends with them."""
    if len(steps) <= most:
        return steps, values
    starts = np.arange(0, len(steps), math.ceil(len(steps) / most))
    sizes = np.diff([*starts, len(steps)])
    means: Column = np.add.reduceat(values, starts) / sizes
    return steps[starts + sizes - 1], means


def _table(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the values at a few steps, for who can't see the chart."""
    lines = [line for line in series if line["kind"] in ("line", "points")]
    steps = sorted({step for line in lines for step in line["x"]})
    places = np.unique(np.linspace(0, len(steps) - 1, _TABLE_ROWS).astype(int)).tolist() if steps else []
    columns = [dict(zip(line["x"], line["y"], strict=True)) for line in lines]
    return {
        "names": [line["name"] for line in lines],
        "rows": [
            {"step": steps[place], "values": [column.get(steps[place]) for column in columns]} for place in places
        ],
    }
