"""Imports go flows → alm_pipeline → storage, never back, and heavy or foreign packages stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
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


ROOMS = (
    "storage.printed",
    "storage.local",
    "storage.kinds",
    "storage",
    "storage.upkeep",
    "alm_pipeline.runtime",
    "alm_pipeline.config.fields",
    "alm_pipeline.config",
    "alm_pipeline.recipes",
    "alm_pipeline.naming",
    "alm_pipeline.vocabulary",
    "alm_pipeline.conversations",
    "alm_pipeline.corpus.files",
    "alm_pipeline.corpus.formats",
    "alm_pipeline.corpus",
    "alm_pipeline.filtering",
    "alm_pipeline.tokenization.templates",
    "alm_pipeline.tokenization.chat",
    "alm_pipeline.models.health",
    "alm_pipeline.models.demo",
    "alm_pipeline.models",
    "alm_pipeline.new_tokenizer",
    "alm_pipeline.tokenization.engines",
    "alm_pipeline.tokenization",
    "alm_pipeline.alignment",
    "alm_pipeline.scoring.served",
    "alm_pipeline.scoring.backends",
    "alm_pipeline.scoring",
    "alm_pipeline.exactness",
    "alm_pipeline.objective.chunking",
    "alm_pipeline.objective",
    "alm_pipeline.evaluation",
    "alm_pipeline.objective.baselines",
    "alm_pipeline.hypernetwork.networks",
    "alm_pipeline.transfer.level",
    "alm_pipeline.transfer",
    "alm_pipeline.transfer.bytes",
    "alm_pipeline.hypernetwork.sampling",
    "alm_pipeline.merging",
    "alm_pipeline.training.parallel",
    "alm_pipeline.training.data",
    "alm_pipeline.training.model",
    "alm_pipeline.training.loop",
    "alm_pipeline.training.student",
    "alm_pipeline.training",
    "alm_pipeline.ensemble",
    "alm_pipeline.rollouts",
    "alm_pipeline.calibration.report",
    "alm_pipeline.calibration",
    "alm_pipeline.inspection",
    "alm_pipeline.comparison",
    "alm_pipeline.editing.directions",
    "alm_pipeline.editing",
    "alm_pipeline.student_report",
    "alm_pipeline.tokenizer_report",
    "alm_pipeline.preflight",
    "alm_pipeline.preflight.checks",
    "alm_pipeline",
    "alm_pipeline.methods",
    "alm_pipeline.rounds",
    "alm_pipeline.audit",
    "alm_pipeline.hypernetwork",
    "alm_pipeline.planning.speed",
    "alm_pipeline.planning",
    "flows.execution",
    "flows",
    "flows.models",
    "flows.terminal",
    "flows.cli.models",
    "flows.cli",
)
"""Every folder of modules, each after those that it may import from."""


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


def _room(file: Path) -> str:
    """The folder that a module is in, dotted."""
    return ".".join(file.relative_to(ROOT).parent.parts)


def test_every_folder_of_modules_is_a_room_of_the_list() -> None:
    folders = {_room(file) for package in FORBIDDEN for file in (ROOT / package).rglob("*.py")}
    assert sorted(ROOMS) == sorted(folders)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_above_it(room: str) -> None:
    """In the order of `ROOMS`, so that no arrow goes back, and the list is an order to read the code in."""
    files = sorted((ROOT / room.replace(".", "/")).glob("*.py"))
    imported = {(file.name, _room(other)) for file in files for other in _modules(file)}
    above = {room, *ROOMS[: ROOMS.index(room)]}
    assert sorted((file, other) for file, other in imported if other not in above) == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_can_be_overlooked(room: str) -> None:
    files = [file for file in (ROOT / room.replace(".", "/")).glob("*.py") if file.name != "__init__.py"]
    assert len(files) <= 12
    assert sum(len(file.read_text().splitlines()) for file in files) <= 2000


def test_modules_do_not_import_each_other() -> None:
    files = [file for package in FORBIDDEN for file in (ROOT / package).rglob("*.py") if file.name != "__init__.py"]
    graph = {file: {other for other in _modules(file) if other.name != "__init__.py"} for file in files}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def _reachable(files: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(_modules(file))
    return found


@pytest.mark.parametrize("part", ["scoring", "training", "objective", "ensemble"])
def test_what_runs_on_a_gpu_worker_needs_neither_polars_nor_prefect(part: str) -> None:
    reachable = _reachable((ROOT / "alm_pipeline" / part).rglob("*.py"))
    assert [file for file in reachable if {"polars", "prefect"} & set(_imports(file))] == []


def test_processes_that_prepare_a_corpus_start_without_torch_and_transformers() -> None:
    """They take three quarters of the time that such a process needs to start."""
    loaded = _loads(
        "alm_pipeline.pipeline", "alm_pipeline.tokenization.stage", "alm_pipeline.alignment.stage", "flows.tasks"
    )
    assert loaded & {"torch", "transformers", "huggingface_hub"} == set()
