"""Imports go flows → alm_pipeline → storage, never back, and heavy or foreign packages stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "storage": {"alm_pipeline", "flows", "torch", "transformers", "prefect", "polars", "datasets"},
    # opening URLs is the storage's part
    "alm_pipeline": {"flows", "prefect", "fsspec", "s3fs", "gcsfs", "adlfs", "polars"},
    "flows": {"torch", "transformers", "pyarrow", "polars", "fsspec", "numpy"},
}
EXCEPTIONS = {(f"alm_pipeline/inspection/{module}.py", "polars") for module in ("frame", "summary", "tables")}


def _imports(file: Path) -> Iterator[str]:
    """The top-level packages that a module imports anywhere, in its functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # a relative import would stay inside its package, and hide it from this test
            yield "." if node.level else (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_keep_to_the_layers(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    imported = {(file.relative_to(ROOT).as_posix(), name) for file in files for name in _imports(file)}
    assert {name for _, name in imported}, "the package imports nothing: is this its folder?"
    assert {(file, name) for file, name in imported if name in FORBIDDEN[package] | {"."}} - EXCEPTIONS == set()


def test_the_exceptions_are_used() -> None:
    assert {(file, name) for file, _ in EXCEPTIONS for name in _imports(ROOT / file)} >= EXCEPTIONS


def _loads(*modules: str) -> set[str]:
    script = f"import {', '.join(modules)}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_packages_and_configuration_load_nothing_heavy() -> None:
    loaded = _loads("alm_pipeline", "alm_pipeline.config", "storage", "storage.dataset", "storage.folders")
    assert loaded & {"torch", "transformers", "datasets", "polars", "prefect"} == set()


def _modules(file: Path) -> Iterator[Path]:
    """The project's modules that a module imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in FORBIDDEN:
            place = ROOT.joinpath(*node.module.split("."))
            named = [place / f"{alias.name}.py" for alias in node.names]
            yield from (path for path in (place.with_suffix(".py"), place / "__init__.py", *named) if path.exists())


def _reachable(files: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(_modules(file))
    return found


@pytest.mark.parametrize("part", ["scoring", "distillation", "objective", "ensemble"])
def test_what_runs_on_a_gpu_worker_needs_neither_polars_nor_prefect(part: str) -> None:
    reachable = _reachable((ROOT / "alm_pipeline" / part).glob("*.py"))
    assert [file for file in reachable if {"polars", "prefect"} & set(_imports(file))] == []


def test_processes_that_prepare_a_corpus_start_without_torch() -> None:
    """It takes three quarters of the time that they need to start."""
    loaded = _loads(
        "alm_pipeline.pipeline", "alm_pipeline.tokenization.stage", "alm_pipeline.alignment.stage", "flows.stages"
    )
    assert "torch" not in loaded
