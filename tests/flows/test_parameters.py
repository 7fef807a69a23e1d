"""The flows' parameters and deployments: complete, described, and equal to the lists that they come from."""

from typing import Any, get_args

import pytest
import yaml
from prefect import Flow

from alm_pipeline.config.overrides import Overrides
from alm_pipeline.config.recipes import RECIPES
from flows.alm import alm
from flows.execution.runners import Runner
from flows.model_flows import ensemble, evaluate, transfer
from flows.stages import PHASES, POOL_DEPLOYMENTS, Only, Phase, Until
from flows.verify import verify
from tests.flows.loopback import ROOT

FLOWS: list[Flow[..., Any]] = [alm, evaluate, transfer, ensemble, verify]


@pytest.fixture(scope="module")
def deployments() -> dict[str, Any]:
    """The deployments of prefect.yaml by name."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    return {deployment["name"]: deployment for deployment in content["deployments"]}


def test_the_parameters_of_alm_are_the_overrides() -> None:
    """Compares names, types, defaults and descriptions."""
    overrides = Overrides.model_json_schema()["properties"]
    parameters = {name: alm.parameters.properties[name] for name in overrides}
    for schema in (*parameters.values(), *overrides.values()):
        schema.pop("title")
        schema.pop("position", None)
    assert parameters == overrides


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_parameter_has_a_description(flow: Flow[..., Any]) -> None:
    properties = flow.parameters.properties
    assert [name for name, schema in properties.items() if not schema.get("description")] == []


def test_descriptions_name_every_choice() -> None:
    for parameter, names in {"recipe": RECIPES, "runner": get_args(Runner), "until": get_args(Until)}.items():
        description = alm.parameters.properties[parameter]["description"]
        assert [name for name in names if name not in description] == []


def test_every_until_and_every_phase_is_registered() -> None:
    assert set(PHASES) == set(get_args(Until))
    assert {phase for phases in PHASES.values() for phase in phases} == set(get_args(Phase))
    assert set(POOL_DEPLOYMENTS) == set(get_args(Only))
    assert set(get_args(Only)) <= set(get_args(Phase))


def test_every_phase_of_a_gpu_pool_has_its_deployment(deployments: dict[str, Any]) -> None:
    for only, name in POOL_DEPLOYMENTS.items():
        flow, _, deployment = name.partition("/")
        assert flow == alm.name
        assert deployments[deployment]["parameters"] == {"only": only}
        assert deployments[deployment]["work_pool"]["name"] == "gpu"


def test_every_flow_has_a_deployment_and_every_deployment_a_flow(deployments: dict[str, Any]) -> None:
    flows = {f"{flow.fn.__module__}.{flow.fn.__name__}": flow for flow in FLOWS}
    used = set()
    for name, deployment in deployments.items():
        entrypoint = deployment["entrypoint"].replace(".py:", ".").replace("/", ".")
        assert set(deployment.get("parameters", {})) <= set(flows[entrypoint].parameters.properties), name
        assert deployment["description"], name
        used.add(entrypoint)
    assert used == set(flows)
