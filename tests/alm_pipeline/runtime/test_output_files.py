"""Results replace those of an earlier run, all of them: what can't be written this time does not stay."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from alm_pipeline.runtime import output_files
from alm_pipeline.runtime.output_files import can_draw, write_outputs
from storage.urls import read_bytes

ROOT = Path(__file__).parents[3]


PICTURES = {"a.png": lambda: b"2", "b.png": lambda: b"3"}


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_draw()
    monkeypatch.setattr(output_files, "find_spec", lambda _: None)
    assert not can_draw()


def test_pictures_that_are_not_drawn_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "results"
    every = [f"{folder}/{name}" for name in ("numbers.json", "a.png", "b.png")]
    assert write_outputs(folder, {"numbers.json": b"1"}, PICTURES) == every
    assert [Path(file).read_bytes() for file in every] == [b"1", b"2", b"3"]
    (folder / "mine.txt").write_text("of the user")
    without_matplotlib(monkeypatch)
    (folder / "b.png").unlink()  # one that was never there is left out as well
    with caplog.at_level("INFO"):
        assert write_outputs(str(folder), {"numbers.json": b"4"}, PICTURES) == every[:1]
    assert "a.png and b.png are left out: matplotlib is not installed" in caplog.text
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "numbers.json": b"4",
        "mine.txt": b"of the user",
    }


def test_an_object_store_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://output-files/results"
    write_outputs(url, {"numbers.json": b"1"}, PICTURES)
    without_matplotlib(monkeypatch)
    assert write_outputs(url, {"numbers.json": b"3"}, PICTURES) == [f"{url}/numbers.json"]
    assert read_bytes(f"{url}/a.png") is None


def _functions(package: str) -> Iterator[tuple[str, str]]:
    """The functions of modules that look for matplotlib, by module and name, as text."""
    for file in (ROOT / package).rglob("*.py"):
        text = file.read_text()
        if "can_draw()" in text or '"matplotlib"' in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    yield f"{file.relative_to(ROOT)}: {node.name}", ast.unparse(node)


def test_every_picture_of_results_is_written_so() -> None:
    writing = [file for file in (ROOT / "alm_pipeline").rglob("*.py") if "write_outputs(" in file.read_text()]
    assert len(writing) >= 6
    asking = {name.rpartition(" ")[2] for name, text in _functions("alm_pipeline") if "can_draw()" in text}
    assert asking == {"can_draw", "write_outputs", "require_picture", "write_reports"}  # whose card names the picture
    asked = {name for name, text in _functions("alm_pipeline") if "'matplotlib'" in text}
    assert asked == {"alm_pipeline/runtime/output_files.py: can_draw"}
