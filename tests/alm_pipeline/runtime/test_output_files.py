"""Results replace those of an earlier run, all of them: what can't be written this time does not stay."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from alm_pipeline.runtime import output_files
from alm_pipeline.runtime.output_files import can_draw, show_undrawn, write_outputs

ROOT = Path(__file__).parents[3]


def test_what_has_no_content_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    every = {"numbers.json": b"1", "picture.png": b"2"}
    assert write_outputs(folder, every) == [f"{folder}/{name}" for name in every]
    (folder / "mine.txt").write_text("of the user")
    assert write_outputs(str(folder), {"numbers.json": b"3", "picture.png": None, "other.png": None}) == [
        f"{folder}/numbers.json"
    ]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "numbers.json": b"3",
        "mine.txt": b"of the user",
    }


def test_an_object_store_is_alike() -> None:
    url = "memory://output-files/results"
    write_outputs(url, {"numbers.json": b"1", "picture.png": b"2"})
    assert write_outputs(url, {"numbers.json": b"3", "picture.png": None}) == [f"{url}/numbers.json"]


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert can_draw()
    monkeypatch.setattr(output_files, "find_spec", lambda _: None)
    assert not can_draw()
    with caplog.at_level("INFO"):
        show_undrawn("a.png", "b.png")
    assert "a.png and b.png are left out: matplotlib is not installed" in caplog.text


def _functions(package: str) -> Iterator[tuple[str, str]]:
    """The functions of modules that look for matplotlib, by module and name, as text."""
    for file in (ROOT / package).rglob("*.py"):
        text = file.read_text()
        if "can_draw()" in text or '"matplotlib"' in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    yield f"{file.relative_to(ROOT)}: {node.name}", ast.unparse(node)


def test_every_picture_of_results_that_may_be_left_out_is_written_so() -> None:
    drawing = {name: text for name, text in _functions("alm_pipeline") if "can_draw()" in text}
    drawing = {name: text for name, text in drawing.items() if "output_files.py" not in name and "require_" not in name}
    assert len(drawing) >= 5
    assert [name for name, text in drawing.items() if "write_outputs(" not in text] == []
    asked = {name for name, text in _functions("alm_pipeline") if "'matplotlib'" in text}
    assert asked == {"alm_pipeline/runtime/output_files.py: can_draw"}
