"""The picture of an edit: singular values and signature of every layer. Needs matplotlib (extra `pictures`)."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from alm_pipeline.editing.directions.stage import PlaceSpectrum
from storage.errors import UserError
from storage.printed.inert import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MARK, _EDITED, _LEFT = "#333333", "#e07b39", "#2a6fb0", "#b0bec5"
_DECADES = 6
"""of singular values that the colors cover"""


def draw_spectrum(spectrum: Sequence[PlaceSpectrum], title: str) -> bytes:
    """Return a PNG, with the same bytes for the same spectrum. Raises UserError if matplotlib is missing.

    Each row is a place, the first layer at the bottom. The marks are the ranks of what is kept and dropped.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("the picture needs matplotlib: pip install 'alm-pipeline[pictures]'") from error
    sides = [] if not spectrum[0].positive_values else ["positive", "negative"]
    height = 1.6 + 0.17 * max(8, len(spectrum))
    figure = Figure(figsize=(4.4 * len(sides) + 3.4, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(sides) + 1, squeeze=False, sharey=True)[0]
    for number, side in enumerate(sides):
        _draw_values(figure, axes[number], spectrum, side)
    _draw_signature(axes[-1], spectrum)
    for axis in axes:
        axis.tick_params(colors=_INK, labelsize=8)
    axes[0].set_yticks(range(len(spectrum)), [place.place for place in spectrum], fontsize=7)
    figure.suptitle(one_line(title), fontsize=12, color=_INK, parse_math=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw_values(figure: "Figure", axes: "Axes", spectrum: Sequence[PlaceSpectrum], side: str) -> None:
    rows = [getattr(place, f"{side}_values") for place in spectrum]
    width = max(map(len, rows))
    table = np.full((len(rows), width), np.nan)
    for number, row in enumerate(rows):
        table[number, : len(row)] = np.log10(np.maximum(row, 1e-300))
    top = float(np.nanmax(table))
    extent = (0.5, width + 0.5, -0.5, len(rows) - 0.5)
    image = axes.imshow(
        table, origin="lower", aspect="auto", cmap="viridis", vmin=top - _DECADES, vmax=top, extent=extent
    )
    figure.colorbar(image, ax=axes, label="log₁₀ singular value", pad=0.01)
    ranks = [(number, getattr(place, f"{side}_rank")) for number, place in enumerate(spectrum) if place.edited]
    for number, rank in ranks:
        if rank <= width:
            axes.plot([rank + 0.5] * 2, [number - 0.5, number + 0.5], color=_MARK, linewidth=2)
    sign, verb = ("⁺", "kept") if side == "positive" else ("⁻", "dropped")
    axes.set_title(f"Ω{sign}: left of the marks is {verb}", loc="left", fontsize=9, color=_INK)
    axes.set_xlabel("singular value", color=_INK, fontsize=9)


def _draw_signature(axes: "Axes", spectrum: Sequence[PlaceSpectrum]) -> None:
    colors = [_EDITED if place.edited else _LEFT for place in spectrum]
    axes.barh(range(len(spectrum)), [place.signature for place in spectrum], color=colors, height=0.8)
    axes.set_ylim(-0.6, len(spectrum) - 0.4)
    axes.set_title("signature (blue: edited)", loc="left", fontsize=9, color=_INK)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
