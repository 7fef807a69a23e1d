"""Progress artifacts, as the server holds them."""

from collections.abc import Callable

import pytest
from prefect import flow
from prefect.client.schemas.objects import Artifact

from flows import progress_artifacts
from flows.progress_artifacts import ProgressArtifacts

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


def test_each_stage_has_one_artifact_that_is_updated(
    monkeypatch: pytest.MonkeyPatch, shown: Callable[[str], list[Artifact]]
) -> None:
    monkeypatch.setattr(progress_artifacts, "_SECONDS_PER_UPDATE", 0.0)

    @flow
    def show_progress() -> None:
        progress = ProgressArtifacts()
        for done in (1, 2, 4):
            progress.show("tokenize Teacher/1", done, 4, "B")
        progress.show("without total", 10, None, "B")
        progress.show("a third", 1, 3, "tokens")

    show_progress()
    (whole,) = shown("progress-tokenize-teacher-1")
    assert (whole.type, whole.data) == ("progress", 100.0)
    assert whole.description.startswith("tokenize Teacher/1: 4 of 4 B, ")
    assert [artifact.data for artifact in shown("progress-a-third")] == [pytest.approx(100 / 3)]
    assert shown("progress-without-total") == []


def test_a_failing_server_stops_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("restarting")

    monkeypatch.setattr(progress_artifacts, "create_progress_artifact", fail)

    @flow
    def show_progress() -> None:
        ProgressArtifacts().show("score", 4, 4, "tokens")

    show_progress()
    assert "its progress can't be shown for now: ConnectionError('restarting')" in caplog.text
