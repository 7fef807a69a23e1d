"""Progress: bars on a terminal, lines elsewhere."""

import io
import logging
import time

import pytest
from rich.console import Console

from alm_pipeline.runtime import progress
from alm_pipeline.runtime.progress import observed, progress_bars, track


def test_a_line_every_ten_seconds_and_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "alm_pipeline"), track("score", 400, "tokens") as advance:
        for _ in range(4):
            advance(100, "KL 0.1")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("score: 200 of 400 tokens, ")
    assert lines[0].endswith("KL 0.1")
    assert lines[-1].startswith("score: 400 tokens in ")


def test_a_finished_bar_keeps_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with progress_bars(console):
        assert progress._bars is not None
        now = iter([0.0, *[2.0] * 20, *[500.0] * 100])
        monkeypatch.setattr(progress._bars, "get_time", lambda: next(now))
        with track("tokenize", None, "B") as advance:
            advance(2000)
        task = progress._bars.tasks[0]
        assert task.finished
        assert task.elapsed == pytest.approx(2.0)
    assert progress._bars is None


def test_without_a_terminal_there_are_no_bars() -> None:
    with progress_bars(Console(file=io.StringIO())):
        assert progress._bars is None


def test_the_note_of_a_stage_is_shown_below_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    with progress_bars(console), track("train", 40, "steps") as advance:
        advance(1, "loss 0.5, KL 0.1, lr 1e-4, 1,234 tokens/s, 3.1 GiB")
        assert progress._bars is not None
        progress._bars.refresh()
        assert "loss 0.5, KL 0.1, lr 1e-4, 1,234 tokens/s, 3.1 GiB" in file.getvalue()  # whole on 80 columns
    assert progress._bars is None


def test_lines_contain_the_time_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "alm_pipeline"), track("score", 400, "tokens", already=200) as advance:
        for _ in range(3):
            advance(50)
    assert ", 0:00:18 left" in caplog.records[0].getMessage()


def test_an_observer_is_called_on_progress() -> None:
    calls: list[tuple[object, ...]] = []
    with observed(lambda *arguments: calls.append(arguments)), track("score", 9, "tokens", already=2) as advance:
        advance(3)
        advance(4)
    assert calls == [("score", 5, 9, "tokens"), ("score", 9, 9, "tokens")]
    with track("score", 9, "tokens") as advance:
        advance(1)
    assert len(calls) == 2


@pytest.mark.bad_input
@pytest.mark.parametrize("width", [20, 40, 80, 160])
def test_a_bar_shows_foreign_names_as_they_are_at_any_width(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    with progress_bars(console), track("a\x1b[31m[/]\u202eb\n", 40, "steps") as advance:
        advance(1, "note [bold] \x1b]0;title\x07")
        assert progress._bars is not None
        progress._bars.refresh()
        progress.show_line("line [/] \x1b[2J\udcff")
    shown = file.getvalue()
    assert r"a\x1b[31m" in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert r"[2J\xff" in shown.replace("\n", "")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with progress_bars(Console(file=io.StringIO(), force_terminal=True)):
        assert progress._bars is None
