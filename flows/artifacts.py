"""The artifacts of a finished run in Prefect's UI: its numbers as a table, and a page with links and pictures.

They only inform people: if something can't be shown, a warning is logged and the run goes on. Pictures are embedded in
the page, since a store's files have no address that a browser could open.
"""

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from alm_pipeline.naming.names import run_title
from storage.printed.inert import markdown, markdown_code, one_line
from storage.urls import join_url, read_bytes

if TYPE_CHECKING:
    from alm_pipeline.config import AlmConfig
    from alm_pipeline.report import RunSummary

Rows = Sequence[tuple[str, str]]
Result = TypeVar("Result")
_CHUNKS = 120
"""drawn of the example alignment"""


def create_summary_artifacts(config: "AlmConfig", summary: "RunSummary", rows: Rows) -> None:
    """Create the artifacts `alm-summary`, a table, and `alm-report`, a page."""
    title = markdown(run_title(config))
    table = [
        {"what": one_line(what), "value": one_line(value)} for what, value in [*rows, *summary.shown_places.items()]
    ]
    page = _page(title, summary, rows)
    _attempt("table", lambda: create_table_artifact(table, key="alm-summary", description=title))
    _attempt("report", lambda: create_markdown_artifact(page, key="alm-report", description=title))


def _page(title: str, summary: "RunSummary", rows: Rows) -> str:
    places = summary.places
    alignments = [url for place, url in places.items() if place.rpartition(": ")[2] == "alignments"]
    pictures = {"Aligned chunks of an example": _attempt("alignment", lambda: _draw_alignment(alignments[0]))}
    if "student" in places:
        pictures["Training curves of the student"] = _attempt("curves", lambda: _read_curves(places["student"]))
    # lists, since Prefect's tables cut long cells off
    parts = [
        f"# {title}",
        "\n".join(f"- {markdown(what)}: **{markdown(value)}**" for what, value in rows),
        *(f"## {name}\n\n![{name}]({_data_url(png)})" for name, png in pictures.items() if png is not None),
        "## Where the files are",
        "\n".join(f"- {name.replace('_', ' ')}: {markdown_code(url)}" for name, url in summary.shown_places.items()),
    ]
    return "\n\n".join(parts)


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _draw_alignment(alignments: str) -> bytes:
    from alm_pipeline.inspection.drawing import draw
    from alm_pipeline.inspection.picture import picture

    return draw(picture(alignments, chunks=_CHUNKS))


def _read_curves(student: str) -> bytes | None:
    """Read the student's curves; None if it has none: it was not trained, or matplotlib is not installed."""
    from alm_pipeline.training.student.curves import PICTURE

    return read_bytes(join_url(student, PICTURE))


def _attempt(what: str, show: Callable[[], Result]) -> Result | None:
    try:
        return show()
    except Exception as error:
        get_run_logger().warning("the %s can't be shown: %s: %s", what, type(error).__name__, error)
        return None
