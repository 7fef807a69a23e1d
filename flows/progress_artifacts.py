"""Progress artifacts: what a running flow shows in Prefect's UI."""

import contextvars
import re
import time
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from storage.printed.inert import markdown

_SECONDS_PER_UPDATE = 5.0


class ProgressArtifacts:
    """An artifact `progress-STAGE` for each stage: how much is done, at what rate, and how long the rest will take.

    The artifacts only inform people: while the server can't be reached, a warning is logged and the stage goes on.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()  # the run's, for calls from a stage's own threads
        self._start: dict[str, tuple[float, float]] = {}
        self._updated: dict[str, float] = {}
        self._artifacts: dict[str, UUID] = {}

    def show(self, stage: str, done: float, total: float | None, unit: str) -> None:
        """Update the stage's artifact, at most every 5 seconds and at the end. Without a total there is no artifact."""
        since, before = self._start.setdefault(stage, (time.monotonic(), done))
        is_due = time.monotonic() - self._updated.get(stage, 0.0) >= _SECONDS_PER_UPDATE
        if total and (is_due or done >= total):
            self._updated[stage] = time.monotonic()
            rate = (done - before) / max(time.monotonic() - since, 1e-9)
            percent, description = min(100.0, 100 * done / total), _describe(stage, done, total, unit, rate)
            self._context.copy().run(self._update, stage, percent, description)

    def _update(self, stage: str, percent: float, description: str) -> None:
        try:
            if stage in self._artifacts:
                update_progress_artifact(self._artifacts[stage], percent, description)
            else:
                key = "progress-" + re.sub("[^a-z0-9]+", "-", stage.lower()).strip("-")
                artifact = create_progress_artifact(percent, key, description)
                assert isinstance(artifact, UUID)  # and not a coroutine, as inside an event loop
                self._artifacts[stage] = artifact
        except Exception as error:
            get_run_logger().warning("%s: its progress can't be shown for now: %r", stage, error)


def _describe(stage: str, done: float, total: float, unit: str, rate: float) -> str:
    left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
    speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"{markdown(stage)}: {done:,.0f} of {total:,.0f} {unit}, {speed} {unit}/s{left}"
