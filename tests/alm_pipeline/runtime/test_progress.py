"""Progress: bars on a terminal, lines elsewhere."""

import io
import itertools
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


def shown(console: Console) -> list[str]:
    """Draw the bars as they are now, and return their lines."""
    assert progress._bars is not None
    page = Console(file=io.StringIO(), width=console.width, color_system=None, record=True)
    page.print(progress._bars.get_renderable())
    return [line.rstrip() for line in page.export_text().splitlines()]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_each_stage_is_one_line_with_its_share_and_the_time_left(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with progress_bars(console):
        assert progress._bars is not None
        clock = itertools.count(0, 30)
        progress._bars.get_time = lambda: float(next(clock))
        stages = {"tokenize teacher": "B", "a stage with a very long name of its own": "tokens", "train": "steps"}
        for name, unit in stages.items():
            with track(name, 40_000_000, unit) as advance:
                advance(10_000_000)
                lines = shown(console)
        assert len(lines) == len(stages)
        assert all(len(line) <= width for line in lines)
        assert "25%" in lines[-1]
        assert ("left" in lines[-1]) == (width >= 32)
        assert ("/s" in lines[-1]) == (width >= 50)
        assert ("of 40.0M steps" in lines[-1]) == (width >= 72)
        assert all("in 0:" in line for line in lines[:-1]) == (width >= 32)


def test_the_parts_of_a_stage_share_a_line() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with progress_bars(console):
        progress.expect("tokenize teacher", 400)
        with track("tokenize teacher", 100, "B") as first, track("tokenize teacher", 100, "B") as second:
            first(100)
            second(100)
            (line,) = shown(console)
            assert "50%" in line
            assert "200 B of 400 B" in line
        with track("tokenize teacher", 200, "B") as third:
            third(199)
            assert "100%" in shown(console)[0]
            assert "in 0:" not in shown(console)[0]
            third(1)
        (line,) = shown(console)
        assert "in 0:" in line
        with track("align", 100, "tokens") as one, track("align", 100, "tokens") as other:
            one(100)
            other(50)
            assert "75%" in shown(console)[1]


def test_the_total_time_left_is_below_the_bars() -> None:
    """Of a stage that has begun by its own rate, of the others as expected; one without a bar is over by then."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with progress_bars(console):
        progress.expect_seconds({"shard": 10, "tokenizer": 3600, "score": 600, "train": 3 * 3600})
        assert shown(console) == ["total: about 4.2 h left"]
        with track("score", 3, "tokens"):
            assert shown(console)[-1] == "total: about 3.2 h left"
        with track("train", 4, "steps") as advance:
            assert shown(console)[-1] == "total: about 3.0 h left"
            advance(4)
        assert shown(console)[-1] == "total: less than a minute left"
        progress.expect_seconds({})
        assert len(shown(console)) == 2


def test_without_bars_a_total_is_ignored() -> None:
    progress.expect("score", 3)
    with track("score", 3, "tokens") as advance:
        advance(3)
    progress.expect_seconds({"score": 3.0})
