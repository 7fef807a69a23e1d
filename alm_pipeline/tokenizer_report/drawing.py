"""The picture of a tokenizer report: bytes per token by cell, and chunks by bytes. Needs matplotlib."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alm_pipeline.naming.differences import value_text
from alm_pipeline.tokenizer_report.report import TokenizerReport
from storage.errors import UserError
from storage.printed.inert import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f5f5f", "#8c6d31")
_LARGE = 64
"""bytes of a chunk: larger ones are drawn here"""
Cell = tuple[str | None, str | None]
"""a corpus and a group of it; all of them for None"""
_MOST_CELLS, _LONGEST = 40, 48
"""cells that are drawn, and characters of a label"""
_INK, _GRID = "#333333", "#dddddd"


def draw_report(report: TokenizerReport) -> bytes:
    """Return a PNG, with the same bytes for the same report. Raises UserError if matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("the picture needs matplotlib: pip install 'alm-pipeline[pictures]'") from error
    names = [row["tokenizer"] for row in report.tokenizers]
    cells = list(dict.fromkeys(map(_cell, report.lengths)))[:_MOST_CELLS]
    heights = [0.9 + len(cells) * (0.22 * len(names) + 0.16), *([3.2] if report.chunk_bytes else [])]
    figure = Figure(figsize=(8.4, sum(heights) + 0.9 + 0.25 * len(names)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_lengths(axes[0], report, names, cells)
    if report.chunk_bytes:
        _draw_chunks(axes[1], report, names)
    handles, shown = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, shown, loc="outside lower left", ncols=1, frameon=False, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _cell(row: dict[str, Any]) -> Cell:
    return row["corpus"], row["group"]


def _label(cell: Cell) -> str:
    return _short(", ".join(filter(None, cell)) or "all texts")


def _short(text: str) -> str:
    shown = one_line(text)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _draw_lengths(axes: "Axes", report: TokenizerReport, names: Sequence[str], cells: Sequence[Cell]) -> None:
    height = 0.86 / len(names)
    for place, name in enumerate(names):
        rows = {_cell(row): row for row in report.lengths if row["tokenizer"] == name}
        at = np.arange(len(cells)) + height * (place - (len(names) - 1) / 2)
        values = [rows[cell]["bytes_per_token"] for cell in cells]
        shown = f" {_short(value_text(name))}"  # one that begins with _ would be left out
        axes.barh(at, values, 0.9 * height, color=_COLORS[place % len(_COLORS)], label=shown)
        for position, cell in zip(at, cells, strict=True):
            if rows[cell]["low"] is not None:
                axes.plot([rows[cell]["low"], rows[cell]["high"]], [position] * 2, color=_INK, linewidth=1.2)
    axes.set_yticks(np.arange(len(cells)), list(map(_label, cells)), parse_math=False)
    axes.invert_yaxis()
    axes.set_title("Bytes per token (line: 95 % interval)", loc="left", fontsize=12, color=_INK)
    _style(axes, "x")


def _draw_chunks(axes: "Axes", report: TokenizerReport, names: Sequence[str]) -> None:
    """Draw the share of bytes that are in chunks of at most so many bytes."""
    for place, name in enumerate(names[1:], start=1):
        rows = [row for row in report.chunk_bytes if row["other"] == name]
        if rows:
            sizes = np.minimum([row["bytes"] for row in rows], _LARGE)
            shares = np.cumsum([row["bytes"] * row["chunks"] for row in rows], dtype=np.float64)
            axes.step(sizes, shares / shares[-1], where="post", color=_COLORS[place % len(_COLORS)], linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks([2**power for power in range(7)], [str(2**power) for power in range(6)] + [f"{_LARGE} or more"])
    axes.set_ylim(0, 1.02)
    axes.set_title("Share of the bytes in chunks of at most this many", loc="left", fontsize=12, color=_INK)
    axes.set_xlabel(f"bytes of a chunk, aligned with {_short(value_text(names[0]))}", color=_INK, parse_math=False)
    _style(axes, "both")


def _style(axes: "Axes", axis: Any) -> None:
    axes.grid(axis=axis, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)
