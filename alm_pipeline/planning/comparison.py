"""What a plan expected of a run, beside what came out."""

from collections.abc import Callable, Iterator, Mapping

from pydantic import BaseModel, ConfigDict

from alm_pipeline.planning.numbers import amount_text, bytes_text, count_text, duration_text
from alm_pipeline.planning.plan import Amount, Plan
from alm_pipeline.report import RunSummary


class Comparison(BaseModel):
    """One number, planned and actual."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    planned: float
    actual: float

    @property
    def deviation(self) -> float:
        """By which part of the actual number the plan was off; positive where it planned too much."""
        return (self.planned - self.actual) / self.actual if self.actual else 0.0

    def row(self) -> tuple[str, str, str, str]:
        """Return the cells of a table: what, planned, actual, and how far the plan was off."""
        show = _SHOWN.get(self.what, count_text)
        planned = amount_text(Amount(value=self.planned), show)
        return self.what, planned, show(self.actual), f"{self.deviation:+.0%}"

    def line(self) -> tuple[str, str]:
        """Return the row of a summary: what was planned, and the numbers."""
        what, planned, actual, deviation = self.row()
        return f"planned {what}", f"{planned}; it was {actual} (the plan's error: {deviation})"


_SHOWN: Mapping[str, Callable[[float], str]] = {"time": duration_text, "cache": bytes_text}
HEADER = ("", "planned", "actual", "plan's error")


def compare(plan: Plan, summary: RunSummary, seconds: Mapping[str, float]) -> list[Comparison]:
    """Return what was estimated, with what came out; nothing for what was known. `seconds` is each stage's time."""
    return list(_compare(plan, summary, seconds))


def _compare(plan: Plan, summary: RunSummary, seconds: Mapping[str, float]) -> Iterator[Comparison]:
    per_token = plan.cache_bytes_per_teacher_token
    cache = per_token and plan.teacher_tokens and per_token.times(plan.teacher_tokens.value)
    pairs = (
        ("examples", plan.examples, summary.examples),
        ("text bytes", plan.text_bytes, summary.text_bytes),
        ("teacher tokens", plan.teacher_tokens, summary.teacher_tokens),
        ("student tokens", plan.student_tokens, summary.student_tokens),
        ("cache", None if per_token and per_token.exact else cache, _cache_bytes(summary)),
    )
    for what, planned, actual in pairs:
        if planned and not planned.exact:
            yield Comparison(what=what, planned=planned.value, actual=actual)
    expected = {stage: value for stage, value in plan.expected_seconds().items() if stage in seconds}
    if expected:
        actual = sum(seconds[stage] for stage in expected)
        yield Comparison(what="time", planned=sum(expected.values()), actual=actual)


def _cache_bytes(summary: RunSummary) -> float:
    return summary.cache_bytes_per_teacher_token * summary.teacher_tokens
