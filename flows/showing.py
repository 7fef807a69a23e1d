"""What a finished run shows in Prefect's UI: its numbers as a table and as text with links, and two pictures.

They are for people: what can't be shown is told in the log, and the run goes on. Pictures are data URLs, since a
store's files have no address that a browser could open.
"""

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from storage.urls import join_url, read_bytes

if TYPE_CHECKING:
    from alm_pipeline.pipeline import Pipeline
    from alm_pipeline.report import Summary

Rows = Sequence[tuple[str, str]]
_CHUNKS = 120
"""of the example whose alignment is drawn"""


def show_summary(pipeline: "Pipeline", summary: "Summary", rows: Rows) -> None:
    """Artifacts `alm-summary` (a table), `alm-report` (text), `alm-alignment` and `alm-curves` (pictures)."""
    table = [{"what": what, "value": value} for what, value in [*rows, *summary.places.items()]]
    _attempt("table", lambda: create_table_artifact(table, key="alm-summary"))
    _attempt("report", lambda: create_markdown_artifact(report_text(pipeline, summary, rows), key="alm-report"))
    _attempt("alignment", lambda: _show_picture("alm-alignment", "An example's aligned chunks", _alignment(pipeline)))
    if "student" in summary.places:
        _attempt("curves", lambda: _show_picture("alm-curves", "The student's training", _curves(pipeline)))


def report_text(pipeline: "Pipeline", summary: "Summary", rows: Rows) -> str:
    """The summary as Markdown: what was made of what, the numbers, and where everything lies."""
    config = pipeline.config
    lines = [
        f"# {config.corpus.name}: {config.teacher} to {config.student.model}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(what)} | {_cell(value)} |" for what, value in rows),
        "",
        "## Where it lies",
        "",
        *(f"- {name.replace('_', ' ')}: {_link(url)}" for name, url in summary.places.items()),
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _link(url: str) -> str:
    return f"[{url}]({url})" if "://" in url else f"`{url}`"


def _alignment(pipeline: "Pipeline") -> bytes:
    from alm_pipeline.inspection.drawing import draw
    from alm_pipeline.inspection.picture import picture

    return draw(picture(pipeline.alignments.url, chunks=_CHUNKS))


def _curves(pipeline: "Pipeline") -> bytes | None:
    """None of a student without any: it was not trained, or matplotlib is not installed."""
    from alm_pipeline.curves import PICTURE

    return read_bytes(join_url(pipeline.student.url, PICTURE))


def _show_picture(key: str, description: str, png: bytes | None) -> None:
    if png is not None:
        url = "data:image/png;base64," + base64.b64encode(png).decode()
        create_image_artifact(url, key=key, description=description)


def _attempt(what: str, show: Callable[[], object]) -> None:
    try:
        show()
    except Exception as error:
        get_run_logger().warning("the %s can't be shown: %s: %s", what, type(error).__name__, error)
