"""The commands for finished students."""

from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli.app import app


def student(folder: Path, steps: int) -> str:
    folder.mkdir()
    step = list(range(1, steps + 1))
    pl.DataFrame({"step": step, "loss": [1 / k for k in step]}).write_parquet(folder / "metrics.parquet")
    return str(folder)


def test_curves_of_one_and_of_several_students(tmp_path: Path) -> None:
    urls = [student(tmp_path / name, steps) for name, steps in (("short", 3), ("long", 60))]
    for number in (1, 2):
        file = tmp_path / f"{number}.png"
        result = CliRunner().invoke(app, ["curves", *urls[:number], "--picture", str(file)])
        assert result.exit_code == 0, result.output
        with Image.open(file) as picture:
            assert picture.format == "PNG"
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "2.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curves", "nothing-here"], "has no metrics.parquet"),
        (["curves", "nothing-here", "--picture", "curves.svg"], "write FILE.png"),
        (["push", "nothing/here-0", "me/student"], "is not the folder of a finished student"),
        (["run", "transfer", "--set", "publish.repo=nonsense"], "publish.repo"),
        (["run", "transfer", "--set", "log.report_to=[wand]"], "log.report_to"),
    ],
)
def test_mistakes_are_reported(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
