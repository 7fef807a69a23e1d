"""The flows' parameters and deployments: complete, described, and equal to the lists that they come from."""

from typing import Any, get_args

import pytest
import yaml
from prefect import Flow
from prefect.exceptions import ParameterTypeError

from alm_pipeline.recipes.overrides import Overrides
from alm_pipeline.recipes.recipes import RECIPES, recipe
from flows.alm import alm
from flows.execution.runners import Runner
from flows.model_flows import audit, edit, ensemble, evaluate, tokenizers, transfer
from flows.models.acceptance import acceptance
from flows.models.calibration import calibrate
from flows.models.compare import compare, measure
from flows.models.hypernet import hypernet
from flows.models.on_policy import on_policy, write
from flows.stages import PHASES, POOL_DEPLOYMENTS, Only, Phase, Until
from flows.verify import verify
from tests.flows.loopback import ROOT

FLOWS: list[Flow[..., Any]] = [
    alm,
    evaluate,
    transfer,
    edit,
    hypernet,
    on_policy,
    write,
    ensemble,
    acceptance,
    calibrate,
    audit,
    tokenizers,
    compare,
    measure,
    verify,
]


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


def errors_of(flow: Flow[..., Any], **parameters: Any) -> str:
    with pytest.raises(ParameterTypeError) as caught:
        flow.validate_parameters(parameters)
    return str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_misspelt_parameter_is_answered_with_the_nearest(flow: Flow[..., Any]) -> None:
    for name, schema in flow.parameters.properties.items():
        wrong = name[: len(name) // 2] + name[len(name) // 2 + 1 :]
        error = errors_of(flow, **{wrong: 1})
        assert f"{wrong}: no such parameter; did you mean" in error
        assert f"{name} (" in error
        assert schema["description"][:15] in error


@pytest.mark.bad_input
def test_a_misspelt_argument_of_a_call_is_answered_with_the_nearest() -> None:
    with pytest.raises(ParameterTypeError, match=r"stpes: no such parameter; did you mean steps \(The number"):
        alm(stpes=3)  # type: ignore[call-arg]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "meant"),
    [("lr", "learning_rate"), ("epochs", "steps"), ("batch_size", 'settings={"train.batch_tokens": …}')],
)
def test_names_of_other_trainers_are_answered_with_the_parameter(name: str, meant: str) -> None:
    assert f"did you mean {meant} (" in errors_of(alm, **{name: 1})


@pytest.mark.bad_input
def test_misspelt_fields_and_names_in_parameters_are_answered_with_the_nearest() -> None:
    content = recipe("transfer").model_dump(mode="json")
    content["train"]["lr"] = 3
    content["objective"]["chunking"] = "boundry"
    error = errors_of(alm, config=content)
    assert "config.train.lr: no such setting; did you mean config.train.learning_rate (" in error
    assert "config.objective.chunking: 'boundry' is not one of" in error
    assert "did you mean focus?" in errors_of(transfer, model="a", tokenizer="b", folder="c", initialization="fcus")
    members = [{"modl": "a"}]
    assert "members.0.modl: no such setting; did you mean members.0.model (" in errors_of(
        ensemble, members=members, folder="x"
    )
