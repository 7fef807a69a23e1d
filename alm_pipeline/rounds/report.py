"""The results of on-policy rounds: every measure of every student, with its change from student 0."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alm_pipeline.config import AlmConfig
from alm_pipeline.evaluation.bootstrap import Interval, paired_intervals
from alm_pipeline.methods.units import BITS, KL
from alm_pipeline.naming.names import student_title
from alm_pipeline.rounds.measures import (
    BYTES,
    FINISHED_SHARE,
    REPETITION,
    REVERSE_KL,
    TEACHER_BITS,
    TOKENS,
    USABLE,
    WRITTEN,
)
from alm_pipeline.runtime.output_files import write_outputs
from storage.printed.inert import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS_FILE, TABLE, DOCUMENT, PICTURE = "units.parquet", "rounds.parquet", "rounds.json", "rounds.png"
_ORDER = (KL, REVERSE_KL, BITS, TEACHER_BITS, TOKENS, BYTES, USABLE, FINISHED_SHARE, REPETITION)
_COLOR, _INK, _GRID = "#0072b2", "#3b3b3b", "#e4e4e4"
_ACROSS = 4


class StudentMeasure(NamedTuple):
    """A measure of one student; `student` 0 is the one before the first round."""

    student: int
    domain: str
    """what the student wrote, or a task"""
    measure: str
    value: Interval
    difference: Interval | None
    """to student 0, paired by prompt; None for student 0 itself"""


@dataclass(frozen=True)
class RoundsReport:
    """The measures of the students 0 to R."""

    tables: Sequence[pa.Table]
    """[R + 1] rows of `UNITS`"""
    measures: Sequence[StudentMeasure]

    @classmethod
    def of(cls, tables: Sequence[pa.Table]) -> "RoundsReport":
        """Return the report of students' measures, in order."""
        return cls(tables, [measure for name in _names(tables) for measure in _measured(tables, *name)])

    def units(self) -> pa.Table:
        """Return all measures by unit: the columns of `UNITS`, with the student before them."""
        parts = [
            table.add_column(0, "student", pa.array([student] * len(table), pa.int64()))
            for student, table in enumerate(self.tables)
        ]
        return pa.concat_tables(parts)

    def table(self) -> pa.Table:
        """Return the measures as rows: value and difference to student 0, each with its 95 % interval."""
        return pa.Table.from_pylist(self.rows(), schema=_TABLE)

    def rows(self) -> list[dict[str, Any]]:
        return [_row(measure) for measure in self.measures]

    def document(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {"measures": self.rows()}


_NUMBERS = ("value", "low", "high", "difference", "difference_low", "difference_high")
_TABLE = pa.schema(
    [
        ("student", pa.int64()),
        ("domain", pa.string()),
        ("measure", pa.string()),
        *((name, pa.float64()) for name in _NUMBERS),
    ]
)


def _row(measure: StudentMeasure) -> dict[str, Any]:
    value, difference = measure.value, measure.difference or Interval(0.0, None, None)
    has = measure.difference is not None
    numbers = (value.value, value.low, value.high, difference.value if has else None, difference.low, difference.high)
    return {
        "student": measure.student,
        "domain": measure.domain,
        "measure": measure.measure,
        **dict(zip(_NUMBERS, numbers, strict=True)),
    }


def _names(tables: Sequence[pa.Table]) -> list[tuple[str, str]]:
    """Return the domains and measures that every student has."""
    found = [
        dict.fromkeys(zip(table["domain"].to_pylist(), table["measure"].to_pylist(), strict=True)) for table in tables
    ]
    common = [name for name in found[0] if all(name in other for other in found)]
    return sorted(common, key=lambda name: _ORDER.index(name[1]) if name[1] in _ORDER else len(_ORDER))


def _measured(tables: Sequence[pa.Table], domain: str, measure: str) -> list[StudentMeasure]:
    units = [_units(table, domain, measure) for table in tables]
    names = sorted({name for of_student in units for name in of_student})
    # a prompt that a student has no text on counts for nothing
    pairs = np.array([[of_student.get(name, (0.0, 0.0)) for name in names] for of_student in units])
    if not (pairs[:, :, 1].sum(1) > 0).all():
        return []
    found = paired_intervals(pairs[:, :, 0], pairs[:, :, 1])
    return [StudentMeasure(number, domain, measure, each.value, each.difference) for number, each in enumerate(found)]


def _units(table: pa.Table, domain: str, measure: str) -> dict[str, tuple[float, float]]:
    columns = (table[name].to_pylist() for name in ("domain", "measure", "unit", "sum", "size"))
    return {
        unit: (total, size)
        for of_domain, of_measure, unit, total, size in zip(*columns, strict=True)
        if (of_domain, of_measure) == (domain, measure)
    }


def write_report_files(report: RoundsReport, folder: Path, config: AlmConfig) -> None:
    """Write the results into a folder: two tables, JSON, and a picture if matplotlib is there."""
    pq.write_table(report.units(), folder / UNITS_FILE, compression="zstd")
    pq.write_table(report.table(), folder / TABLE, compression="zstd")
    (folder / DOCUMENT).write_text(json.dumps(report.document(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_outputs(folder, {}, {PICTURE: partial(draw_rounds, report.rows(), student_title(config))})


def draw_rounds(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Return a PNG: every measure against the number of rounds, with its 95 % intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys((row["domain"], row["measure"]) for row in rows))
    across = min(_ACROSS, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(2.9 * across + 0.4, 2.4 * down + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        _draw_measure(axis, name, [row for row in rows if (row["domain"], row["measure"]) == name])
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.suptitle(one_line(f"{title}: on what each student writes"), fontsize=10, color=_INK, parse_math=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw_measure(axis: "Axes", name: tuple[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    students = [row["student"] for row in rows]
    values = [row["value"] for row in rows]
    if all(row["low"] is not None for row in rows):
        axis.fill_between(
            students, [row["low"] for row in rows], [row["high"] for row in rows], color=_COLOR, alpha=0.2
        )
    axis.plot(students, values, color=_COLOR, marker="o", markersize=4, linewidth=1.6)
    domain, measure = name
    axis.set_title(
        one_line(measure if domain == WRITTEN else f"{domain}: {measure}"), fontsize=9, color=_INK, parse_math=False
    )
    axis.set_xticks(students)
    axis.set_xlabel("rounds", fontsize=8, color=_INK)
    axis.grid(color=_GRID)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=8)
