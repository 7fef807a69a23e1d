"""The commands' options: made from the configuration, and described."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from alm_pipeline.config import Dtype, Method, SpecialTokens
from alm_pipeline.recipes.overrides import Overrides
from flows.cli.app import app, run
from flows.cli.models.making import transfer
from flows.cli.models.using import compare, evaluate, generate
from flows.stages import Until

ROOT = Path(__file__).parents[3]
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def parameter(command: str, name: str) -> Any:
    (found,) = [parameter for parameter in COMMANDS[command].params if parameter.name == name]
    return found


def type_of(command: Callable[..., None], name: str) -> Any:
    return get_args(inspect.signature(command).parameters[name].annotation)[0]


@pytest.mark.parametrize("name", [name for name in Overrides.model_fields if name != "settings"])
def test_each_override_is_an_option_of_run(name: str) -> None:
    field, option = Overrides.model_fields[name], parameter("run", name)
    assert option.opts == [f"--{name.replace('_', '-')}"]
    assert option.help == field.description
    assert option.default is field.default is None
    # the only option that can be repeated
    assert type_of(run, name) == (list[str] | None if name == "corpus" else field.annotation)


def test_the_other_settings_are_an_option_of_run() -> None:
    assert parameter("run", "settings").opts == ["--set"]


@pytest.mark.parametrize(
    ("command", "name", "choices"),
    [
        (run, "until", Until),
        (transfer, "initialization", Method),
        (transfer, "special_tokens", SpecialTokens),
        (generate, "dtype", Dtype),
        (compare, "dtype", Dtype),
        (evaluate, "dtype", Dtype),
    ],
)
def test_choices_are_the_configurations(command: Callable[..., None], name: str, choices: Any) -> None:
    assert type_of(command, name) is choices


def imported_names() -> Iterator[tuple[str, str]]:
    for file in sorted(file for room in ("terminal", "cli") for file in (ROOT / "flows" / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield from ((file.name, f"{node.module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((file.name, alias.name) for alias in node.names)


def test_the_command_line_has_no_enum_of_its_own() -> None:
    assert [(file, name) for file, name in imported_names() if name.split(".")[0] == "enum"] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_parameter_has_a_help_text(name: str) -> None:
    assert COMMANDS[name].help
    assert [parameter.name for parameter in COMMANDS[name].params if not parameter.help] == []


def test_the_command_line_starts_without_heavy_packages() -> None:
    script = "import flows.cli.app, sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(loaded.split()) & {"torch", "transformers", "prefect", "polars", "pyarrow", "numpy"} == set()
