"""What a run shows in Prefect's UI while it works: progress artifacts."""

import contextvars
import re
import time
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

_SECONDS_AN_UPDATE = 5.0


class ProgressArtifacts:
    """How far each of some stages is, at what rate, and how long it will take: an artifact `progress-STAGE` each.

    They are for people: a server that can't be reached for a while is told in the log, and the stage goes on.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()  # of the run, also where one of a stage's own threads tells
        self._start: dict[str, tuple[float, float]] = {}
        self._last: dict[str, float] = {}
        self._artifacts: dict[str, UUID] = {}

    def show(self, description: str, done: float, total: float | None, unit: str) -> None:
        """So many units are done; the artifact follows now and then, and at the end. Without a total there is none."""
        since, before = self._start.setdefault(description, (time.monotonic(), done))
        is_due = time.monotonic() - self._last.get(description, 0.0) >= _SECONDS_AN_UPDATE
        if total and (is_due or done >= total):
            self._last[description] = time.monotonic()
            rate = (done - before) / max(time.monotonic() - since, 1e-9)
            percent, told = min(100.0, 100 * done / total), _told(description, done, total, unit, rate)
            self._context.copy().run(self._update, description, percent, told)

    def _update(self, stage: str, percent: float, told: str) -> None:
        try:
            if stage in self._artifacts:
                update_progress_artifact(self._artifacts[stage], percent, told)
            else:
                key = "progress-" + re.sub("[^a-z0-9]+", "-", stage.lower()).strip("-")
                made = create_progress_artifact(percent, key, told)
                assert isinstance(made, UUID)  # and no coroutine, as from within an event loop
                self._artifacts[stage] = made
        except Exception as error:
            get_run_logger().warning("%s: its progress can't be shown for now: %r", stage, error)


def _told(stage: str, done: float, total: float, unit: str, rate: float) -> str:
    left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
    speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"{stage}: {done:,.0f} of {total:,.0f} {unit}, {speed} {unit}/s{left}"
