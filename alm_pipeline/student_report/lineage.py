"""Which settings differ between the students, all settings, and what each was made from and with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alm_pipeline.naming.differences import differences, value_text
from alm_pipeline.student_report.stored import ReportedStudent
from storage.printed.inert import yaml_text
from storage.upkeep.catalog import LineageNode
from storage.upkeep.lineage_notes import highlights, origin


@dataclass(frozen=True)
class Node:
    """A dataset of a lineage, in words."""

    role: str
    key: str
    size: str
    notes: list[str]
    made_by: str
    """empty if that is the same as of what was made from it"""
    inputs: list["Node"]


def settings(students: Sequence[ReportedStudent]) -> dict[str, Any] | None:
    """Return the settings that differ, with each student's value, and every student's configuration."""
    configured = [student for student in students if student.configuration]
    if not configured:
        return None
    rows = differences([student.configuration for student in configured]) if len(configured) > 1 else []
    return {
        "names": [student.name for student in configured],
        "differing": [
            {"field": field, "values": [value_text(row[field]) for row in rows]} for field in (rows[0] if rows else ())
        ],
        "all": [{"name": student.name, "yaml": yaml_text(student.configuration)} for student in configured],
    }


def lineages(students: Sequence[ReportedStudent]) -> dict[str, Any]:
    """Return a tree for each student."""
    return {
        "students": [
            {"name": student.name, "url": student.url, "tree": _node(student.origins.lineage(student.key), "")}
            for student in students
        ]
    }


def _node(node: LineageNode, parent_origin: str) -> Node:
    made_by = origin(node.entry)
    is_shown = not node.shown_before
    return Node(
        node.role.replace("_", " "),
        node.key,
        _size(node),
        highlights(node) if is_shown else [],
        (made_by or "not recorded in its manifest") if is_shown and node.entry and made_by != parent_origin else "",
        [_node(source, made_by) for source in node.inputs],
    )


def _size(node: LineageNode) -> str:
    if node.entry is None or node.entry.manifest is None:
        return "no longer stored"
    rows = getattr(node.entry.manifest, "rows", None)
    sizes = getattr(node.entry.manifest, "sizes", None)
    size = node.entry.bytes if sizes is None else sum(sizes.values())
    return f"{f'{rows:,} rows, ' if rows is not None else ''}{size / 1e6:,.2f} MB" + (
        ", as above" if node.shown_before else ""
    )
