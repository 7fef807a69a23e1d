"""The flow `compare`, here and with a GPU pool whose runs are done in this process."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.states import Completed
from typer.testing import CliRunner

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.fields.places import with_absolute_places
from alm_pipeline.pipeline import Pipeline
from flows.cli.app import app
from flows.execution import gpu_pool
from flows.execution.gpu_pool import GpuPool
from flows.models.compare import MEASURE, ComparisonRequest, compare, measure
from storage.errors import UserError
from tests.flows.test_places import relative_config
from tests.lm_eval_tasks import write_choices

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


def test_methods_are_compared(
    config: AlmConfig, root: str, corpus_url: str, shown: Callable[[str], list[Artifact]]
) -> None:
    result = compare(
        ["sft", "slow"],
        config=config,
        storage=root,
        seeds=1,
        domains={"other": corpus_url},
        examples=5,
        definitions={"methods": {"slow": {"train.learning_rate": 1e-5}}},
    )
    assert result["folder"] == f"{root}/comparisons/tiny"
    assert {row["domain"] for row in result["measures"]} == {"tiny", "other"}
    assert result == {"folder": result["folder"], **json.loads(Path(result["folder"], "comparison.json").read_text())}
    rows = json.loads(shown("alm-comparison")[-1].data)
    assert {row["method"] for row in rows} == {"sft", "slow", "original", "teacher"}
    (page,) = shown("alm-comparison-report")
    assert page.data.count("data:image/png;base64,") == 2


def test_the_command_prints_the_tables(config: AlmConfig, root: str, corpus_url: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (tmp_path / "own.yaml").write_text("methods: {slow: {train.learning_rate: 1.0e-5}}")
    arguments = [str(tmp_path / "run.yaml"), "--methods", "sft, slow", "--seeds", "1", "--storage", root]
    arguments += ["--domain", f"other={corpus_url}", "--examples", "5", "--definitions", str(tmp_path / "own.yaml")]
    printed = CliRunner().invoke(app, ["compare-methods", *arguments])
    assert printed.exit_code == 0, printed.output
    for text in ("tiny, held out: ", "other: 5 documents", "bits per byte", "student tokens per second"):
        assert text in printed.stdout
    document = json.loads(CliRunner().invoke(app, ["compare-methods", *arguments, "--json"]).stdout)
    assert document["methods"] == ["sft", "slow", "original", "teacher"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "alm,sfd"], "there is no method sfd; did you mean sft?"),
        (["--domain", "texts.jsonl"], "--domain texts.jsonl: write NAME=URL"),
        (["--definitions", "gone.yaml"], "gone.yaml: can't be read as YAML"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    config: AlmConfig, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = ["compare-methods", str(tmp_path / "run.yaml"), "--storage", str(tmp_path / "store"), *arguments]
    failed = CliRunner().invoke(app, command)
    assert failed.exit_code == 1
    assert message in failed.output
    assert not (tmp_path / "store").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param(
            {"domains": {"other": "columns.jsonl"}},
            r"domains: other: .*columns\.jsonl has no column 'text'; it has 'body' \(text\)\. Say which column "
            r"holds the text in --definitions: \{domains: \{other: ",
            id="column",
        ),
        pytest.param({"domains": {"other": "gone.jsonl"}}, r"domains: other: .*gone\.jsonl", id="file"),
        pytest.param({"domains": {"other": "short.jsonl"}}, r"domains: other: has no documents \(", id="nothing"),
        pytest.param({"domains": {"other": "cut.jsonl"}}, r"domains: other: .*cut\.jsonl", id="damaged"),
        pytest.param({"tasks": ["no_such_task"]}, "tasks: tasks no_such_task: lm_eval has no such task", id="task"),
        pytest.param(
            {
                "methods": ["sft", "own"],
                "definitions": {"methods": {"own": {"train.learning_rates": {"*nothing*": 1e-4}}}},
            },
            r"method own: .*\*nothing\*",
            id="method",
        ),
    ],
)
@pytest.mark.parametrize("gpu_pool", [None, "gpu"])
def test_what_would_stop_a_measurement_or_a_method_stops_the_first_student(
    config: AlmConfig,
    tmp_path: Path,
    pool: list[str],
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, Any],
    message: str,
    gpu_pool: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, line in {"columns": '{"body": "x"}', "short": '{"text": ""}', "cut": '{"text": "some'}.items():
        Path(f"{name}.jsonl").write_text(line)
    parameters: dict[str, Any] = {"methods": ["sft"], **wrong, "gpu_pool": gpu_pool}
    with pytest.raises(UserError, match=message):
        compare(config=config, storage="store", seeds=1, **parameters)
    assert not pool
    assert not Path("store").exists()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A pool that does each run at once in this process, in another folder; the deployments that were run."""
    done: list[str] = []
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run_deployment(name: str, parameters: dict[str, Any], timeout: int) -> FlowRun:
        done.append(name)
        if parameters.get("only") == "score":  # while this process prepares other shards in its own folder
            config = AlmConfig.model_validate(parameters["config"])
            assert config == with_absolute_places(config)
            Pipeline(config, parameters["storage"]).score(parameters["shards"])
            return FlowRun(flow_id=uuid4(), name="busy-bee")
        with chdir(elsewhere):
            if name == MEASURE:
                measure(ComparisonRequest.model_validate(parameters["request"]), parameters["student"])
            else:
                Pipeline(AlmConfig.model_validate(parameters["config"]), parameters["storage"]).train()
        return FlowRun(flow_id=uuid4(), name="busy-bee")

    def wait_until_final(_: GpuPool, id_: UUID) -> FlowRun:
        return FlowRun(id=id_, flow_id=uuid4(), name="bee", state=Completed(), total_run_time=timedelta(seconds=7))

    monkeypatch.setattr(gpu_pool, "run_deployment", run_deployment)
    monkeypatch.setattr(GpuPool, "_wait_until_final", wait_until_final)
    monkeypatch.setattr(GpuPool, "check", lambda *_: None)
    return done


def test_students_are_trained_and_measured_on_a_pool(
    config: AlmConfig, tmp_path: Path, pool: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parameters: dict[str, Any] = {"config": config, "storage": "store", "seeds": 1, "gpu_pool": "gpu"}
    result = compare(["sft", "untrained"], **parameters)
    scored = [name for name in pool if name == "alm/score"]
    assert scored
    assert pool == [*scored, "alm/train", "alm/train", MEASURE, MEASURE]
    assert result["folder"] == "store/comparisons/tiny"
    assert (tmp_path / "store/comparisons/tiny/comparison.json").is_file()
    pool.clear()
    assert compare(["sft", "untrained"], **parameters) == result


def test_a_pool_finds_what_is_measured_on_from_its_own_folder(
    config: AlmConfig, tmp_path: Path, pool: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus, models, domains and tasks by relative names were looked for there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(config.student.model, "own")
    for name in ("one", "two"):
        Path(f"{name}.jsonl").write_text(json.dumps({"text": "The quick brown fox jumps over the lazy dog."}))
    Path("tasks").mkdir()
    write_choices(Path("tasks").absolute(), "foxes", [("The quick", [" brown", " red"], 0)])
    source = {"source": {"kind": "files", "urls": ["two.jsonl"]}, "layout": "text"}
    own = {"student.tokenizer": "own", "train.steps": 0, "train.warmup_steps": 0}
    result = compare(
        ["untrained", "own"],
        config=relative_config(config),
        storage="store",
        seeds=1,
        gpu_pool="gpu",
        domains={"one": "one.jsonl"},
        definitions={"domains": {"two": source}, "methods": {"own": own}},
        tasks=["foxes"],
        task_folder="tasks",
    )
    assert {row["domain"] for row in result["measures"]} == {"tiny", "one", "two", "foxes"}


@pytest.mark.bad_input
def test_a_student_that_is_not_there_is_refused(config: AlmConfig, tmp_path: Path) -> None:
    request = ComparisonRequest(config=config, storage=str(tmp_path), methods=("sft",), seeds=1)
    with pytest.raises(UserError, match="student: 1 is not one of the 1 students"):
        measure(request, 1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "option", [{"task_folder": "tasks"}, {"few_shot": 2}, {"limit": 3}, {"chat": True}, {"examples": 7}], ids=str
)
def test_options_that_nothing_reads_are_refused(config: AlmConfig, tmp_path: Path, option: dict[str, Any]) -> None:
    request = ComparisonRequest(config=config, storage=str(tmp_path), methods=("alm",), **option)
    with pytest.raises(UserError, match=f"{next(iter(option))}: not used, as no (tasks|domains) are named"):
        request.comparison()
