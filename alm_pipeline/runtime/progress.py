"""Progress with rates: bars on a terminal, and a log line every ten seconds elsewhere.

A stage calls `track` and does not know where its progress is shown: `progress_bars` (the command line) shows bars,
otherwise lines go to the logger `alm_pipeline`, for Prefect, pytest or a script to collect.
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from storage.printed.inert import one_line, visible


class Advance(Protocol):
    """Called with the units done since the last call, and a note to show with them, such as the loss."""

    def __call__(self, units: float, note: str = "") -> None: ...


class Observer(Protocol):
    """Called after each advance, with the name of what is tracked, the units done so far and their total."""

    def __call__(self, description: str, done: float, total: float | None, unit: str, /) -> None: ...


logger = logging.getLogger("alm_pipeline")
_SECONDS_PER_LINE = 10.0
_bars: "_Bars | None" = None
_observer: Observer | None = None


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[None]:
    """Show bars on the console inside this context; if it is not a terminal, lines go to the log."""
    global _bars
    if not console.is_interactive:  # a file, or a terminal that can't move its cursor
        yield
        return
    with _Bars(*_columns(console.width), console=console) as bars:
        _bars = bars
        try:
            yield
        finally:
            _bars = None


def _columns(width: int) -> list[ProgressColumn]:
    """Return what fits into the width: the stage and its rate always, times and the bar where there is room."""
    name = TextColumn("{task.description:<28}" if width >= _WIDE else "{task.description}", markup=False)
    if width < _NARROW:
        return [name, _RateColumn()]
    times: list[ProgressColumn] = [TimeElapsedColumn(), TimeRemainingColumn()]
    return [name, *([BarColumn(bar_width=20)] if width >= _WIDE else []), _RateColumn(), *times]


_NARROW, _WIDE = 80, 110
"""characters of a terminal"""


def show_line(line: str) -> None:
    """Show a line above the bars, or in the log where there are none."""
    if _bars:
        _bars.console.print(visible(line), markup=False, highlight=False, emoji=False)
    else:
        logger.info("%s", line)


def expect_seconds(stages: Mapping[str, float]) -> None:
    """Show the time left over all stages below the bars. `stages` are the seconds that each is expected to take."""
    if _bars:
        _bars.ends_at = time.monotonic() + sum(stages.values()) if stages else None


class _Bars(Progress):
    """One line per stage, and below them the notes of running stages, which would not fit beside the bars."""

    ends_at: float | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields.get("note") and not task.finished:
                yield Text(f"  {one_line(task.fields['note'])}", style="cyan", no_wrap=True, overflow="ellipsis")
        if self.ends_at is not None:
            left = timedelta(seconds=round(max(0.0, self.ends_at - time.monotonic())))
            yield Text(f"all stages: about {left} left", no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Also call the observer on the progress of everything tracked inside this context."""
    global _observer
    _observer = observer
    try:
        yield
    finally:
        _observer = None


@contextlib.contextmanager
def track(description: str, total: float | None, unit: str, already: float = 0.0) -> Iterator[Advance]:
    """Track a stage of `total` units. Call the value with the units done since its last call.

    An earlier run did `already` units: they count toward the total, but not toward the rate.
    """
    description = one_line(description)
    display = _bar(_bars, description, total, unit, already) if _bars else _lines(description, total, unit, already)
    with display as advance:
        yield _advance_and_notify(advance, _observer, description, total, unit, already) if _observer else advance


def _advance_and_notify(
    advance: Advance, observer: Observer, description: str, total: float | None, unit: str, done: float
) -> Advance:
    def advance_both(units: float, note: str = "") -> None:
        nonlocal done
        done += units
        advance(units, note)
        observer(description, done, total, unit)

    return advance_both


@contextlib.contextmanager
def _bar(bars: Progress, description: str, total: float | None, unit: str, already: float) -> Iterator[Advance]:
    task = bars.add_task(description, total=total, completed=already, unit=unit, already=already)  # type: ignore[arg-type]

    def advance(units: float, note: str = "") -> None:
        bars.update(task, advance=units, note=note)

    yield advance
    done = bars.tasks[bars.task_ids.index(task)].completed
    bars.update(task, total=done, completed=done)
    bars.stop_task(task)  # freezes its time, and so its rate


@contextlib.contextmanager
def _lines(description: str, total: float | None, unit: str, already: float) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = already

    def advance(units: float, note: str = "") -> None:
        nonlocal done, last
        done += units
        if time.monotonic() - last >= _SECONDS_PER_LINE:
            last = time.monotonic()
            amount = f"{done:,.0f} of {total:,.0f}" if total else f"{done:,.0f}"
            rate = _rate(done - already, last - start, unit)
            left = _time_left(total, done, already, last - start)
            logger.info("%s: %s %s, %s", description, amount, unit, ", ".join(filter(None, [rate, left, note])))

    yield advance
    seconds = time.monotonic() - start
    rate = _rate(done - already, seconds, unit)
    logger.info("%s: %s %s in %.1f s, %s", description, f"{done - already:,.0f}", unit, seconds, rate)


def _rate(units: float, seconds: float, unit: str) -> str:
    rate = units / max(seconds, 1e-9)
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"


def _time_left(total: float | None, done: float, already: float, seconds: float) -> str:
    if not total or done <= already:
        return ""
    left = max(0.0, total - done) * seconds / (done - already)
    return f"{timedelta(seconds=round(left))} left"


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        done = f"{task.completed:,.0f}" + (f"/{task.total:,.0f}" if task.total else "")
        unit, units = task.fields["unit"], task.completed - task.fields["already"]
        return Text(f"{done} {unit}  {_rate(units, task.elapsed or 0.0, unit) if units else ''}")
