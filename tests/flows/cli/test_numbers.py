"""Every option and every parameter of a flow that is a number refuses NaN, infinity and other types."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from prefect import Flow
from typer.testing import CliRunner

from flows.alm import alm
from flows.cli.app import app
from flows.model_flows import ensemble, evaluate, transfer
from flows.verify import verify

pytestmark = pytest.mark.bad_input

FLOWS: list[Flow[..., Any]] = [alm, evaluate, transfer, ensemble, verify]


def options(number: type) -> Iterator[Any]:
    """Each option of a type, with its command and as many arguments as that needs."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        required = [param for param in command.params if param.required]
        arguments = [param for param in required if param.param_type_name == "argument"]
        others = [param.opts[0] for param in required if param.param_type_name != "argument"]
        line = [name, *("x" for _ in arguments), *(word for option in others for word in (option, "x"))]
        for param in command.params:
            if param.type_descriptor.annotation is number:
                yield pytest.param(line, param.opts[0], id=f"{name} {param.opts[0]}")


@pytest.mark.parametrize(("line", "option"), [*options(float)])
def test_an_option_takes_finite_numbers_only(line: list[str], option: str) -> None:
    for value in ("nan", "inf", "-inf", "1e999", "true", ""):
        result = CliRunner().invoke(app, [*line, f"{option}={value}"])
        assert result.exit_code == 2, value
        assert option in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("line", "option"), [*options(int)])
def test_a_whole_option_takes_whole_numbers_only(line: list[str], option: str) -> None:
    for value in ("nan", "inf", "1e999", "true", "1.5", ""):
        result = CliRunner().invoke(app, [*line, f"{option}={value}"])
        assert result.exit_code == 2, value
        assert option in result.stderr


def parameters() -> Iterator[Any]:
    for flow in FLOWS:
        for name, schema in flow.parameters.properties.items():
            types = {part.get("type") for part in (schema, *schema.get("anyOf", []))}
            if number := types & {"number", "integer"}:
                yield pytest.param(flow, name, number, id=f"{flow.name} {name}")


REQUIRED: dict[str, dict[str, Any]] = {
    "evaluate": {"models": []},
    "transfer": dict.fromkeys(("model", "tokenizer", "folder"), "x"),
    "ensemble": {"members": [], "folder": "x"},
}


@pytest.mark.parametrize(("flow", "name", "types"), [*parameters()])
def test_a_flows_parameter_is_refused_by_name(flow: Flow[..., Any], name: str, types: set[str]) -> None:
    wrong = [float("nan"), float("inf"), float("-inf"), "1e999", True]
    for value in wrong if "number" in types else [*wrong, 10**30]:
        with pytest.raises(Exception, match=name) as error:
            flow.validate_parameters({**REQUIRED.get(flow.name, {}), name: value})
        assert type(error.value).__name__ == "ParameterTypeError", value


def test_numbers_were_found() -> None:
    assert len([*parameters()]) > 10
    assert len([*options(float)]) > 4
