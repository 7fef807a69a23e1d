"""Progress with rates: bars on a terminal, and a log line every ten seconds elsewhere.

A stage calls `track` and does not know where its progress is shown: `progress_bars` (the command line) shows bars,
otherwise lines go to the logger `alm_pipeline`, for Prefect, pytest or a script to collect.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Protocol

from rich.console import Console, JustifyMethod, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
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
    """Return what fits into one line of this width: the stage and its share always."""
    name = max(8, min(_NAME, width - 19 if width >= _TINY else width - 6))
    columns: list[ProgressColumn] = [
        _TextColumn(lambda task: _shortened(task.description, name), "left"),
        _TextColumn(_percentage, "right"),
    ]
    if width >= _WIDE:
        columns.insert(1, BarColumn(bar_width=20))
    if width >= _MEDIUM:
        columns.append(_TextColumn(_amount_done, "right"))
    if width >= _NARROW:
        columns.append(_TextColumn(_rate_so_far, "right"))
    return [*columns, *([_TextColumn(_time, "right")] if width >= _TINY else [])]


_TINY, _NARROW, _MEDIUM, _WIDE = 32, 50, 72, 110
"""characters of a terminal, from which the time, the rate, the amount and the bar are shown"""
_NAME = 20
"""characters of a stage's name; longer ones are cut, so that all else keeps its place"""


def show_line(line: str) -> None:
    """Show a line above the bars, or in the log where there are none."""
    if _bars:
        _bars.console.print(visible(line), markup=False, highlight=False, emoji=False)
    else:
        logger.info("%s", line)


def expect(stage: str, total: float) -> None:
    """Say how many units a stage has in all, where it is tracked in parts: each `track` of it is one part."""
    if _bars:
        _bars.expected[stage] = total


def expect_seconds(stages: Mapping[str, float]) -> None:
    """Show the time left over all stages below the bars, by the seconds expected for each; if empty, nothing."""
    if _bars:
        _bars.stage_seconds = dict(stages)


def _about(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 120 else f"about {seconds / 3600:.1f} h"


class _Bars(Progress):
    """One line per stage, below them the notes of running stages, and the time left over all stages."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        self.expected: dict[str, float] = {}
        self.stage_seconds: dict[str, float] = {}
        self._parts: Counter[TaskID] = Counter()
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields.get("note") and not task.finished:
                yield Text(f"  {one_line(task.fields['note'])}", style="cyan", no_wrap=True, overflow="ellipsis")
        if self.stage_seconds:
            yield Text(f"total: {_about(self._seconds_left())} left", no_wrap=True, overflow="ellipsis")

    def _seconds_left(self) -> float:
        """Return the time left by the rates of running stages, and as expected for those that have not begun.

        A stage that shows no bar is over when a later one has begun.
        """
        tasks, left = {task.description: task for task in self.tasks}, 0.0
        later_has_begun = False
        for stage, expected in reversed(self.stage_seconds.items()):
            if task := tasks.get(stage):
                later_has_begun = True
                left += _seconds_left(task, expected)
            elif not later_has_begun:
                left += expected
        return left

    def begin(self, stage: str, total: float | None, unit: str, already: float) -> TaskID:
        """Begin a part of a stage. All parts of a stage share its line, also those that run at the same time."""
        with self._lock:
            task = next(
                (task for task in self.tasks if task.description == stage and task.fields["unit"] == unit), None
            )
            if task is None:
                id_ = self.add_task(stage, total=total, completed=already, unit=unit, already=already)  # type: ignore[arg-type]
            else:
                id_, task.stop_time, task.finished_time = task.id, None, None
                whole = None if total is None or task.total is None else task.total + total
                self.update(id_, total=whole, completed=task.completed + already)
                task.fields["already"] += already
            self._parts[id_] += 1
            if stage in self.expected:
                self.update(id_, total=self.expected[stage])
        return id_

    def end(self, id_: TaskID) -> None:
        """End a part. After the last one, the stage's time stops, and so its rate stays."""
        with self._lock:
            self._parts[id_] -= 1
            task = self._tasks[id_]
            if not self._parts[id_] and task.completed >= self.expected.get(task.description, 0.0):
                self.update(id_, total=task.completed, completed=task.completed)
                self.stop_task(id_)


def _seconds_left(task: Task, expected: float) -> float:
    """Return the time that a stage which has begun has left, by its own rate once it has one."""
    if task.finished:
        return 0.0
    return max(0.0, expected - (task.elapsed or 0.0)) if task.time_remaining is None else task.time_remaining


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
def _bar(bars: _Bars, description: str, total: float | None, unit: str, already: float) -> Iterator[Advance]:
    task = bars.begin(description, total, unit, already)

    def advance(units: float, note: str = "") -> None:
        bars.update(task, advance=units, note=note)

    yield advance
    bars.end(task)


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
    return f"{_duration(left)} left"


_SCALES = ((9, "G"), (6, "M"), (4, "k"))
"""the decimal exponent from which a prefix is used"""


def _scaled(value: float, unit: str) -> str:
    """Return a number for a narrow column: 171, 54.3k, 1.2M; of bytes 171 B, 54.3 kB."""
    space = " " if unit == "B" else ""
    factor, prefix = next((scale for scale in _SCALES if value >= 10 ** scale[0]), (0, ""))
    scaled = value / 10 ** min(factor, 3 * (factor // 3))
    number = f"{scaled:,.1f}" if prefix and scaled < 100 else f"{scaled:,.0f}" if scaled >= 10 else f"{scaled:.2g}"
    return f"{number}{space}{prefix}{'B' if space else ''}"


class _TextColumn(ProgressColumn):
    """A column of one line: what does not fit is cut, and never goes on below."""

    def __init__(self, text: Callable[[Task], str], justify: JustifyMethod) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis", justify=justify))
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task), no_wrap=True, overflow="ellipsis")


def _shortened(name: str, width: int) -> str:
    return f"{name[: width - 1]}…" if len(name) > width else f"{name:<{width}}"


def _percentage(task: Task) -> str:
    return "" if not task.total else f"{min(100.0, task.percentage):.0f}%"


def _amount_done(task: Task) -> str:
    unit, completed = task.fields["unit"], _scaled(task.completed, task.fields["unit"])
    whole = f" of {_scaled(task.total, unit)}" if task.total and not task.finished else ""
    return f"{completed}{whole}" + ("" if unit == "B" else f" {unit}")


def _rate_so_far(task: Task) -> str:
    units, unit = task.completed - task.fields["already"], task.fields["unit"]
    if not units or not task.elapsed:
        return ""
    return f"{_scaled(units / task.elapsed, unit)}{'' if unit == 'B' else f' {unit}'}/s"


def _time(task: Task) -> str:
    """Return the time left of a running stage, and the time that a finished one took."""
    if task.finished:
        return f"in {_duration(task.finished_time or 0.0)}"
    units = task.completed - task.fields["already"]
    if not task.total or units <= 0 or not task.elapsed:
        return f"for {_duration(task.elapsed or 0.0)}"
    return f"{_duration(max(0.0, task.total - task.completed) * task.elapsed / units)} left"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
