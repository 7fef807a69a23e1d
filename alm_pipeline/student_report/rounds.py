"""The on-policy rounds that a student belongs to: what each student of them is worth on what it writes itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from alm_pipeline.student_report.stored import ReportedStudent, mapping, number
from storage.errors import UserError
from storage.folders import FolderManifest, load_folder_manifest
from storage.urls import join_url, list_folders

_WIDTH, _HEIGHT, _EDGE = 100.0, 24.0, 3.0
"""of a measure's curve, in its own units"""
_WRITTEN = "written"


def rounds_of(students: Sequence[ReportedStudent]) -> dict[str, Any] | None:
    """Return a table for each rounds folder that has one of these students; None if there is none."""
    tables: dict[str, dict[str, Any]] = {}
    for student in students:
        root = student.url.rsplit("/", 2)[0]
        for name in list_folders(join_url(root, "rounds")):
            url = join_url(root, "rounds", name)
            if url not in tables and (table := _table(url, student.manifest.name)):
                tables[url] = table
    return {"tables": list(tables.values())} if tables else None


def _table(url: str, student: str) -> dict[str, Any] | None:
    try:
        manifest = load_folder_manifest(url)
    except UserError:  # which `alm verify` reports
        return None
    names = manifest.results.get("students") if manifest else None
    if manifest is None or not isinstance(names, list) or student not in names:
        return None
    rows = [row for row in map(mapping, _listed(manifest)) if isinstance(row.get("student"), int)]
    last = max((int(row["student"]) for row in rows), default=0)
    # without a student of the corpus, the first round went on from the model
    place = names.index(student) + last + 1 - len(names)
    titles = dict.fromkeys((str(row.get("domain")), str(row.get("measure"))) for row in rows)
    return {
        "url": url,
        "place": place,
        "last": last,
        "measures": [_measure(title, rows, last) for title in titles],
    }


def _listed(manifest: FolderManifest) -> Sequence[Any]:
    measures = manifest.results.get("measures")
    return measures if isinstance(measures, list) else []


def _measure(title: tuple[str, str], rows: Sequence[Mapping[str, Any]], last: int) -> dict[str, Any]:
    domain, measure = title
    own = {int(row["student"]): row for row in rows if (str(row.get("domain")), str(row.get("measure"))) == title}
    return {
        "title": measure if domain == _WRITTEN else f"{domain}: {measure}",
        "values": [_text(own.get(student, {})) for student in range(last + 1)],
        "points": _points([number(own.get(student, {}).get("value")) for student in range(last + 1)]),
    }


def _text(row: Mapping[str, Any]) -> str:
    value, low, high = (number(row.get(name)) for name in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{value:.4g}" if low is None or high is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _points(values: Sequence[float | None]) -> str:
    """Return the corners of a curve in an SVG of the size above."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(value for _, value in known), max(value for _, value in known)
    span, across = (high - low) or 1.0, max(1, len(values) - 1)
    return " ".join(
        f"{_EDGE + (_WIDTH - 2 * _EDGE) * place / across:.1f},"
        f"{_HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (value - low) / span:.1f}"
        for place, value in known
    )
