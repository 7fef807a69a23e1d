"""An audit's numbers: how far targets are from their exact values, by groups of chunks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.audit.chunks import FORMS
from alm_pipeline.audit.places import BY, ORDER, By
from alm_pipeline.config import Debias

Floats = npt.NDArray[np.float64]


class AuditedChunk(NamedTuple):
    """One chunk of one example, under one form, on one side."""

    side: str
    form: Debias
    example: str
    start: int
    """in bytes of the example's text"""
    end: int
    value: float
    """the target by the side's tokens, in nats"""
    exact: float
    left_out: float
    """the largest share that sequences which were not followed have of the exact value"""
    stored: float
    """the target in training, from the stored scores; NaN for the student"""
    groups: dict[By, str]

    @property
    def error(self) -> float:
        """The target less its exact value, in nats."""
        return self.value - self.exact


@dataclass(frozen=True)
class GroupNumbers:
    """How far the targets of a group of chunks are from their exact values, in nats."""

    side: str
    form: Debias
    by: By
    name: str
    chunks: int
    """whose exact value is certain"""
    uncertain: int
    """the others, which are not among the numbers"""
    median: float | None
    p90: float | None
    p99: float | None
    mean: float | None
    """with its sign: above 0 where the target is too likely"""

    @classmethod
    def of(
        cls, side: str, form: Debias, by: By, name: str, chunks: Sequence[AuditedChunk], tolerance: float
    ) -> "GroupNumbers":
        errors = np.array([chunk.error for chunk in chunks if is_certain(chunk, tolerance)])
        uncertain = len(chunks) - len(errors)
        if not len(errors):
            return cls(side, form, by, name, 0, uncertain, None, None, None, None)
        median, p90, p99 = np.quantile(np.abs(errors), (0.5, 0.9, 0.99)).tolist()
        return cls(side, form, by, name, len(errors), uncertain, median, p90, p99, float(errors.mean()))


def is_certain(chunk: AuditedChunk, tolerance: float) -> bool:
    """Whether the exact value is known to the tolerance."""
    return bool(chunk.left_out <= tolerance and np.isfinite(chunk.error))


def group_numbers(chunks: Sequence[AuditedChunk], tolerance: float) -> list[GroupNumbers]:
    """Return the numbers of all groups that have chunks, by side, grouping, group and form."""
    return list(_group_numbers(chunks, tolerance))


def _group_numbers(chunks: Sequence[AuditedChunk], tolerance: float) -> Iterator[GroupNumbers]:
    grouped: dict[tuple[str, By, str, Debias], list[AuditedChunk]] = {}
    for chunk in chunks:
        for by, name in chunk.groups.items():
            grouped.setdefault((chunk.side, by, name, chunk.form), []).append(chunk)
    for side in dict.fromkeys(chunk.side for chunk in chunks):
        for by in BY:
            for name in ORDER[by]:
                for form in FORMS:
                    if of_group := grouped.get((side, by, name, form)):
                        yield GroupNumbers.of(side, form, by, name, of_group, tolerance)


@dataclass(frozen=True)
class LargestCase:
    """A chunk whose target is far from its exact value, as text."""

    side: str
    form: Debias
    example: str
    start: int
    end: int
    before: str
    """the text before the chunk"""
    text: str
    after: str
    teacher: list[str]
    """the texts of the tokens that the chunk consists of"""
    student: list[str]
    value: float
    exact: float
    error: float

    def row(self) -> dict[str, Any]:
        """Return it as plain values; `text` has the text around the chunk, too, and the chunk in brackets."""
        return {
            "side": self.side,
            "form": self.form,
            "example": self.example,
            "start": self.start,
            "end": self.end,
            "text": f"{self.before}⟦{self.text}⟧{self.after}",
            "teacher_tokens": self.teacher,
            "student_tokens": self.student,
            "value": self.value,
            "exact": self.exact,
            "error": self.error,
        }


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit, or of one source of it."""

    url: str
    source: str | None
    """of the mixture that the student was trained on"""
    teacher: str
    student: str | None
    tolerance: float
    examples: int
    tokens: dict[str, int]
    """by side, of the examples' beginnings that were looked at"""
    followed: dict[str, int]
    """by side: sequences of tokens off the canonical path that were followed"""
    not_covered: dict[str, int]
    """by side: chunks of the configured form that contain scaffold, or lie beyond the tokens that were looked at"""
    stored: dict[str, float]
    """how far the targets in training are from those of this pass: median, p90, p99 in nats"""
    debias: Debias
    """the form that the configuration trains with"""
    numbers: list[GroupNumbers]
    largest: list[LargestCase]
    chunks: list[AuditedChunk]

    def document(self) -> dict[str, Any]:
        """Return it as plain values, without the single chunks."""
        apart = ("source", "numbers", "largest", "chunks")
        return {
            **{name: value for name, value in vars(self).items() if name not in apart},
            "numbers": [vars(row) for row in self.numbers],
            "largest": [case.row() for case in self.largest],
        }


def audit_document(reports: Sequence[AuditReport]) -> dict[str, Any]:
    """Return the reports of an audit as plain values: those of a mixture under their sources' names."""
    if reports[0].source is None:
        return reports[0].document()
    return {"url": reports[0].url, "sources": {str(report.source): report.document() for report in reports}}
