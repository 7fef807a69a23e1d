"""A flow that is refused, whatever its parameters, has failed with the reason: it never crashes."""

from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from flows.alm import alm
from flows.model_flows import ensemble, evaluate, transfer
from flows.run_name import run_name
from flows.verify import verify

pytestmark = [pytest.mark.flow, pytest.mark.bad_input]

HOSTILE = "\x1b[2J{0}{model}%s\ud800\n[/]" + "x" * 5000
# names that are missing or unknown are refused by the server, before there is a run
REFUSED: list[tuple[Flow[..., Any], dict[str, Any], str]] = [
    (alm, {"recipe": "nothing"}, "nothing"),
    (alm, {"recipe": ""}, "transfer"),
    (alm, {"recipe": None}, "recipe"),
    (alm, {"recipe": "{config}"}, "{config}"),
    (alm, {"config": {"corpus": 1}}, "config"),
    (alm, {"config": "mine.yaml"}, "config"),
    (alm, {"settings": {"nothing.like.this": 1}}, "nothing"),
    (alm, {"settings": {"train.steps": "many"}}, "train.steps"),
    (alm, {"settings": {"": 1}}, ""),
    (alm, {"settings": ["train.seed=1"]}, "settings"),
    (alm, {"settings": {"train": {"seed": []}}}, "seed"),
    (alm, {"settings": {"train..seed": 1}}, "train"),
    (alm, {"until": "never"}, "until"),
    (alm, {"only": "shard"}, "only"),
    (alm, {"only": "train", "until": "scores"}, "leave `until` out"),
    (alm, {"shards": [0]}, "needs `only: score`"),
    (alm, {"only": "score", "gpu_pool": "gpu"}, "leave `gpu_pool` out"),
    (alm, {"runner": "slurm"}, "runner"),
    (alm, {"steps": -5}, "steps"),
    (alm, {"steps": "x"}, "steps"),
    (alm, {"gamma": "x"}, "gamma"),
    (alm, {"learning_rate": float("nan")}, "learning_rate"),
    (alm, {"corpus": "/nowhere/at/all.jsonl"}, "/nowhere/at/all.jsonl"),
    (alm, {"corpus": 5}, "corpus"),
    (alm, {"teacher": "/nowhere"}, "/nowhere"),
    (alm, {"student": "/nowhere"}, "/nowhere"),
    (alm, {"storage": "block:nothing"}, "block:nothing"),
    (alm, {"storage": "nothing://x"}, "nothing"),
    (evaluate, {"models": None}, "models"),
    (evaluate, {"models": 5}, "models"),
    (evaluate, {"models": [None]}, "models"),
    (evaluate, {"models": []}, "nothing to measure"),
    (evaluate, {"models": ["/nowhere"], "corpus": "/nowhere.jsonl"}, "/nowhere"),
    (transfer, {"model": None, "tokenizer": None, "folder": None}, "model"),
    (transfer, {"model": "{x}", "tokenizer": "{", "folder": "/nowhere/none"}, "{x}"),
    (transfer, {"model": "/nowhere", "tokenizer": "/nowhere", "folder": "/nowhere/none"}, "/nowhere"),
    (transfer, {"model": "a", "tokenizer": "b", "folder": "c", "initialization": "magic"}, "initialization"),
    (ensemble, {"members": [], "folder": "/nowhere/none"}, "members"),
    (ensemble, {"members": "x", "folder": "{0}"}, "members"),
    (ensemble, {"members": [{"model": "/nowhere"}, {"model": "/nowhere2"}], "folder": "{y"}, "/nowhere"),
    (verify, {"storage": "block:none/x"}, "block:none"),
    (verify, {"storage": None}, "storage"),
    (verify, {"storage": 5}, "storage"),
    (verify, {"checksums": "perhaps"}, "checksums"),
]


@pytest.mark.parametrize(
    ("flow", "parameters", "reason"),
    [pytest.param(*row, id=f"{row[0].name} {str(row[1])[:60]}") for row in REFUSED],
)
def test_a_refused_run_has_failed_with_the_reason(
    prefect_server: None, flow: Flow[..., Any], parameters: dict[str, Any], reason: str
) -> None:
    # as a worker runs it: the server has the parameters as they were sent, and the engine decides
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(flow, parameters=parameters)
    state = run_flow(flow, flow_run=run, return_type="state")
    assert state.is_failed(), f"{state.name}: {state.message}"
    assert state.name == "Failed"
    assert reason in str(state.message)


@pytest.mark.parametrize("value", [None, 5, [], {}, b"\xff", HOSTILE, "\x00", "", float("nan"), 1j], ids=repr)
@pytest.mark.parametrize("flow", [alm, evaluate, transfer, ensemble, verify], ids=lambda flow: flow.name)
def test_every_run_has_a_name(monkeypatch: pytest.MonkeyPatch, flow: Flow[..., Any], value: object) -> None:
    """With every parameter of the same wrong value, with none at all, and without a run."""
    assert callable(flow.flow_run_name)
    assert flow.flow_run_name()
    for parameters in (dict.fromkeys(flow.parameters.properties, value), {}, value):
        monkeypatch.setattr("prefect.runtime.flow_run.parameters", parameters, raising=False)
        name = flow.flow_run_name()
        assert name.isprintable()
        assert 0 < len(name) <= 200


def test_a_name_is_what_the_parameters_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.runtime.flow_run.parameters", {"models": ["a", "b"]}, raising=False)
    assert evaluate.flow_run_name() == "evaluate a, b"  # type: ignore[operator]
    monkeypatch.setattr("prefect.runtime.flow_run.parameters", {"what": "an\x1bescape"}, raising=False)
    assert run_name("alm", lambda parameters: parameters["what"])() == "an\\x1bescape"
