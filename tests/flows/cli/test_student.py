"""The commands for finished students."""

import html
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from alm_pipeline.config import AlmConfig
from alm_pipeline.ensemble.generation import generate_text
from alm_pipeline.pipeline import Pipeline
from flows.cli.app import app
from storage.printed.inert import visible


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


def test_a_report_of_students_with_their_teachers_samples(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path / "store"))
    pipeline.run()
    url, file = pipeline.student.url, tmp_path / "report.html"
    result = CliRunner().invoke(app, ["report", url, str(file), "--teacher"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{file}: 1 student\n"
    prompt = pl.read_parquet(f"{url}/samples.parquet")["prompt"][0]
    parts: list[str] = []
    generate_text(config.teacher, prompt, parts.append, max_tokens=config.evaluation.sample_tokens)
    text = html.escape(visible("".join(parts)))
    shown = file.read_text(encoding="utf-8").replace("&#39;", "&#x27;").replace("&#34;", "&quot;")
    assert f'<bdi>teacher</bdi></h4>\n<pre dir="auto">{text}</pre>' in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nothing/here-0", "report.html"], "is not the folder of a finished student"),
        (["report", "nothing/here-0", "report.pdf"], "name it last"),
        (["report", "nothing/here-0"], "name it last"),
        (["report", "report.html"], "no student is named"),
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
