"""Students as one HTML page: a single file that fetches nothing, and runs only its own two scripts.

Every value that a template prints is made inert (`visible`, without secrets) and escaped. The page's policy names its
scripts by their hashes, so a text that got past that could still run nothing. Charts are drawn by uPlot (MIT), which is
packed into the page.
"""

import base64
import hashlib
import html
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from alm_pipeline.runtime.versions import installed_version
from alm_pipeline.student_report.calibration import calibrations
from alm_pipeline.student_report.charts import charts
from alm_pipeline.student_report.coverage import coverages
from alm_pipeline.student_report.data_flow import data_flows
from alm_pipeline.student_report.lineage import lineages, settings
from alm_pipeline.student_report.results import results
from alm_pipeline.student_report.rounds import rounds_of
from alm_pipeline.student_report.samples import Continue, has_conversations, samples
from alm_pipeline.student_report.stored import ReportedStudent, reported_students
from storage.errors import UserError
from storage.printed.inert import one_line, visible
from storage.urls import join_url, overwrite, read_bytes

REPORT = "runs/report.html"
"""where the report of one student is, in its folder; like all of `runs`, it is not part of the student"""
_log = logging.getLogger("alm_pipeline")
_ASSETS = Path(__file__).with_name("assets")


@dataclass(frozen=True)
class Subject:
    """What a page is about."""

    students: Sequence[ReportedStudent]
    teacher: Continue | None = None
    """continues the samples as well"""
    calibration: Sequence[str] = ()
    """folders that `alm calibrate` wrote"""


@dataclass(frozen=True)
class Section:
    """A part of the page: a template of `assets/sections`, filled with what `content` returns; left out for None."""

    title: str
    name: str
    """of its template, and of its place in the page"""
    content: Callable[[Subject], Any]


SECTIONS = (
    Section("Results", "results", lambda subject: results(subject.students)),
    Section("Calibration", "calibration", lambda subject: calibrations(subject.calibration)),
    Section("On-policy rounds", "rounds", lambda subject: rounds_of(subject.students)),
    Section("Training", "charts", lambda subject: charts(subject.students)),
    Section("Samples", "samples", lambda subject: samples(subject.students, subject.teacher)),
    Section("Data flow", "flow", lambda subject: data_flows(subject.students)),
    Section("Coverage by script", "coverage", lambda subject: coverages(subject.students)),
    Section("Settings", "settings", lambda subject: settings(subject.students)),
    Section("Lineage", "lineage", lambda subject: lineages(subject.students)),
)
"""All parts, in the order of the page. A further one is a function of the page's subject, and a template."""


def write_report(url: str) -> str:
    """Write a student's report into its folder, and return the report's URL. Raises UserError if it is not finished."""
    place = join_url(url, REPORT)
    overwrite(place, report_page([url]).encode())
    return place


def stored_report(url: str) -> str | None:
    """Return the URL of the report in a student's folder; None if it has none."""
    place = join_url(url, REPORT)
    return None if read_bytes(place) is None else place


def write_run_report(url: str, *, is_new: bool) -> None:
    """Write the report of a run's student if that is new, or has none.

    It only informs people: if it can't be written, a warning is logged and the run goes on.
    """
    try:
        if is_new or stored_report(url) is None:
            write_report(url)
    except Exception as error:
        _log.warning(
            "the report can't be written: %s: %s; `alm report %s FILE` tries again", type(error).__name__, error, url
        )


def report_page(urls: Sequence[str], *, teacher: Continue | None = None, calibration: Sequence[str] = ()) -> str:
    """Return the page about finished students at these URLs.

    `teacher` continues the samples as well; `calibration` are folders that `alm calibrate` wrote. Raises UserError for
    a student that is not finished, a folder that is another, or a teacher that is asked for conversations, which are
    written in the student's template.
    """
    students = reported_students(urls)
    if teacher and (wrong := next(filter(has_conversations, students), None)):
        raise UserError(f"{wrong.url}: its samples are conversations in the student's template: leave --teacher out")
    subject = Subject(students, teacher, calibration)
    contents = [(section, section.content(subject)) for section in SECTIONS]
    shown = [(section, content) for section, content in contents if content is not None]
    drawn: Sequence[Any] = next((content["charts"] for section, content in shown if section.name == "charts"), [])
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=_title(students),
            students=students,
            sections=shown,
            style=Markup(_asset("uplot/uPlot.min.css") + _asset("page.css")),
            scripts=[Markup(script) for script in _scripts()],
            policy=_policy(),
            data=Markup(_script_json(drawn)),
            license=Markup(html.escape(_asset("uplot/LICENSE"))),
            version=installed_version("alm-pipeline") or "",
        )
    )


def _title(students: Sequence[ReportedStudent]) -> str:
    models = " · ".join(dict.fromkeys(student.models for student in students))
    return f"{students[0].name}: {models}" if len(students) == 1 else f"{len(students)} students: {models}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    environment.filters["one_line"] = one_line
    return environment


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _scripts() -> tuple[str, ...]:
    return _asset("uplot/uPlot.iife.min.js"), _asset("charts.js")


@cache
def _policy() -> str:
    """Return the page's content security policy: nothing is fetched, and only our own scripts run."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _scripts())
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"


def _script_json(drawn: Sequence[Any]) -> str:
    """Return plain values as JSON that can't end the script element that it is in; its texts are made inert."""
    shown = [
        {**chart, "series": [{**line, "name": one_line(line["name"])} for line in chart["series"]]} for chart in drawn
    ]
    text = json.dumps(shown, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
