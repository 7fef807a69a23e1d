"""Nothing of a list counts double because it is named twice, however it is spelled.

Every list that a command, a flow or a configuration takes is here: it refuses what is there twice, or takes it once.
"""

import inspect
import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import alm_pipeline.editing.directions.settings
import alm_pipeline.hypernetwork.settings  # noqa: F401
from alm_pipeline.config import AlmConfig, Frozen, LogConfig, StudentConfig
from alm_pipeline.config.fields.repeated import each_once, place_of, refuse_repeated
from alm_pipeline.ensemble.config import MemberConfig, read_config
from alm_pipeline.evaluation.local_tasks import write_task
from alm_pipeline.hypernetwork.stage import HypernetPipeline
from alm_pipeline.models.reference import ModelReference
from flows.alm import alm
from flows.cli.app import app
from flows.model_flows import ensemble, evaluate, tokenizers
from flows.models.acceptance import acceptance
from flows.models.calibration import calibrate
from flows.models.compare import compare
from storage.errors import UserError
from tests.alm_pipeline.hypernetwork.test_training import small
from tests.flows.cli.commands import every_command
from tests.flows.test_parameters import FLOWS

SPELLINGS = {
    "as before": lambda path: str(path),
    "with a slash": lambda path: f"{path}/",
    "relative": lambda path: os.path.relpath(path),
    "from here": lambda path: f"./{os.path.relpath(path)}",
    "as a URL": lambda path: f"file://{path}",
    "by a link": lambda path: _link(path),
}


def _link(path: Path) -> str:
    link = path.parent / f"link-to-{path.name}"
    if not link.exists():
        link.symlink_to(path)
    return str(link)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_folder: str, gemma_folder: str) -> Path:
    """A working folder with two models, texts and a task; no model can be loaded."""
    for name, folder in (("one", llama_folder), ("two", gemma_folder)):
        shutil.copytree(folder, tmp_path / name)
    rows = [{"question": f"{k}?", "choices": ["one", "two"], "answer": 0} for k in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{k} and {k + 1}"}) + "\n" for k in range(9)))
    pair = {"prompt": "?", "positive": "one", "negative": "two"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    twice = "methods: {mine: {train.steps: 1}, mine: {train.steps: 2}}"
    (tmp_path / "twice.yaml").write_text(twice)
    write_task(tmp_path / "tasks", "mine", "multiple_choice", tmp_path / "questions.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelReference, "load", None)
    return tmp_path


def _subclasses(of: type[Frozen]) -> Iterator[type[Frozen]]:
    for model in of.__subclasses__():
        yield model
        yield from _subclasses(model)


def _lists() -> set[str]:
    """The names of all lists that commands, flows and configurations take."""
    callables = [*every_command(app), *((f"flow {flow.name}", flow.fn) for flow in FLOWS)]
    parameters = {
        f"{name} {parameter}"
        for name, function in callables
        for parameter, found in inspect.signature(function).parameters.items()
        if re.search(r"\b(list|tuple)\[", str(found.annotation))
    }
    models = [model for model in _subclasses(Frozen) if model.__module__.startswith(("alm_pipeline.", "flows."))]
    return parameters | {
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if re.search(r"\b(list|tuple)\[", str(field.annotation))
    }


TEXTS = "--corpus a.jsonl"
QUESTIONS = "--questions questions.jsonl --prompt question"
MIXTURE = "--corpus a=a.jsonl --corpus b={a.jsonl}"
REFUSED = {
    "compare models": f"compare one {{one}} {TEXTS}",
    "compare corpus": f"compare one {MIXTURE}",
    "acceptance drafts": f"acceptance one one {{one}} {TEXTS}",
    "tokenizers names": f"tokenizers one two {{two}} {TEXTS}",
    "tokenizers corpus": f"tokenizers one {MIXTURE}",
    "calibrate models": f"calibrate one two {{one}} {QUESTIONS} --output out",
    "compare-methods domain": "compare-methods transfer --domain a=a.jsonl --domain b={a.jsonl}",
    **{f"{name} corpus": f"{name} transfer {MIXTURE}" for name in ("run", "plan", "check", "compare-methods", "write")},
    "on-policy corpus": f"on-policy transfer {MIXTURE}",
    "contamination corpus": f"contamination transfer --questions questions.jsonl {MIXTURE}",
    "merge BASE TUNED": "merge one {one} out",
    "edit demonstrations contrasts": "edit one out --demonstrations pairs.jsonl --contrasts {pairs.jsonl}",
}
"""Commands by list, or by arguments that are compared with each other; {NAME} is replaced by other spellings of it."""
SEEDS = "--set train.seed=1 --set train.seed=2"
EXACT = {
    "compare-methods domain, one name": "compare-methods transfer --domain a=a.jsonl --domain a=questions.jsonl",
    **{
        f"{name} settings": f"{name} transfer {SEEDS}"
        for name in ("run", "plan", "check", "show", "compare-methods", "on-policy", "write")
    },
    "contamination settings": f"contamination transfer --questions questions.jsonl {SEEDS}",
    "evaluate tasks": "evaluate one --tasks mine,mine --task-folder tasks",
    "edit tasks": "edit one out --demonstrations pairs.jsonl --tasks mine,mine --task-folder tasks",
    "compare-methods tasks": f"compare-methods transfer {TEXTS} --tasks mine,mine --task-folder tasks",
    "compare-methods methods": f"compare-methods transfer {TEXTS} --methods sft,sft",
    "compare-methods definitions": "compare-methods transfer --definitions twice.yaml",
}
SAME = "are the same|is named twice|both have|is there twice|are the demonstrations"


@pytest.mark.bad_input
@pytest.mark.parametrize(("case", "spelling"), [*product(REFUSED, SPELLINGS), *((case, "as before") for case in EXACT)])
def test_a_command_refuses_what_is_named_twice(here: Path, case: str, spelling: str) -> None:
    command = (REFUSED | EXACT)[case]
    for name in re.findall("{(.+?)}", command):
        if spelling == "as a URL" and (here / name).is_dir():
            return  # it is that of a stored student
        command = command.replace(f"{{{name}}}", SPELLINGS[spelling](here / name))
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert re.search(SAME, " ".join(result.stderr.split())), result.stderr
    assert not (here / "out").exists()


FLOWS_REFUSE: dict[str, tuple[Any, dict[str, Any]]] = {
    "flow evaluate models": (evaluate, {"models": ["one", "one"], "corpus": "a.jsonl"}),
    "flow evaluate models on tasks": (
        evaluate,
        {"models": ["one", "./one"], "tasks": ["mine"], "task_folder": "tasks"},
    ),
    "flow evaluate corpus": (evaluate, {"models": ["one"], "corpus": ["a=a.jsonl", "b=./a.jsonl"]}),
    "flow evaluate tasks": (evaluate, {"models": ["one"], "tasks": ["mine", "mine"], "task_folder": "tasks"}),
    "flow ensemble members": (ensemble, {"members": [{"model": "one"}, {"model": "one/"}], "folder": "out"}),
    "flow acceptance drafts": (acceptance, {"target": "one", "drafts": ["one", "one/"], "corpus": "a.jsonl"}),
    "flow tokenizers names": (tokenizers, {"names": ["one", "one/"], "corpus": "a.jsonl"}),
    "flow tokenizers corpus": (tokenizers, {"names": ["one"], "corpus": ["a=a.jsonl", "b=./a.jsonl"]}),
    "flow calibrate models": (calibrate, {"models": ["one", "one/"], "questions": "questions.jsonl"}),
    "flow compare methods": (compare, {"methods": ["sft", "sft"]}),
    "flow alm corpus": (alm, {"corpus": ["a=a.jsonl", "b=./a.jsonl"]}),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("case", FLOWS_REFUSE)
def test_a_flow_refuses_what_is_named_twice(here: Path, case: str) -> None:
    flow, parameters = FLOWS_REFUSE[case]
    parameters |= {"members": [MemberConfig.model_validate(each) for each in parameters.get("members", ())]}
    given = {name: value for name, value in parameters.items() if value}
    with pytest.raises(UserError, match=SAME):
        flow.fn(**given)
    assert not (here / "out").exists()


ALSO = {
    "flow ensemble tasks": "read by the flow evaluate",
    "flow compare tasks": "compare-methods tasks",
    "ComparisonRequest.methods": "compare-methods methods",
    "ComparisonRequest.tasks": "compare-methods tasks",
    "EditEvaluationConfig.tasks": "edit tasks",
    "RoundsConfig.tasks": "checked as those of compare-methods",
    "AlmConfig.corpus": "run corpus",
    "EnsembleConfig.members": "flow ensemble members",
    "HypernetEvaluationConfig.tokenizers": "below",
    "SamplerConfig.pretokenizers": "refused by itself",
    "ServedConfig.urls": "refused by itself",
    "Overrides.corpus": "run corpus",
    "report urls": "taken once: below",
    "report calibration": "taken once: below",
    "curves urls": "taken once: below",
    "LogConfig.report_to": "taken once: below",
    "FilesSource.urls": "each file is read once",
    "show corpus": "prints a template to edit",
    # sets of names and patterns, and lists in which one may be there twice
    "flow calibrate weights": "a set",
    "flow alm shards": "a set: a shard that is there is not computed again",
    "CorpusConfig.normalize": "a form of a form is the same",
    "SourceConfig.normalize": "a form of a form is the same",
    "DecontaminationConfig.questions": "a document is left out once",
    "FilesSource.exclude": "patterns",
    "LoraConfig.targets": "patterns",
    "TrainConfig.freeze": "patterns",
    "ObjectiveConfig.learn": "a set",
    "ScoreConfig.devices": "a process each",
    "ServedConfig.command": "a command",
    "ServedConfig.arguments": "a command",
    "SamplingConfig.vllm_arguments": "a command",
    "serve arguments": "a command",
    "HypernetworkConfig.widths": "numbers",
}


def test_every_list_is_here() -> None:
    assert {*REFUSED, *EXACT, *FLOWS_REFUSE, *ALSO} >= _lists()


def test_members_of_an_ensemble_are_different(here: Path) -> None:
    def members(*of: dict[str, Any]) -> None:
        (here / "both.yaml").write_text(json.dumps({"members": of}))
        read_config(here / "both.yaml")

    with pytest.raises(UserError, match=r"both\.yaml: one and .*/one: are the same member"):
        members({"model": "one"}, {"model": "./one", "weight": 2})
    with pytest.raises(UserError, match="one: is named twice: name each member once"):
        members({"model": "one"}, {"model": "one", "tokenizer": "./one/"})
    members({"model": "one"}, {"model": "one", "tokenizer": "two", "hypernetwork": "network"})


@pytest.mark.parametrize("spelling", [*SPELLINGS, "a copy", "with another template"])
def test_a_hypernetwork_is_evaluated_with_different_tokenizers(here: Path, config: AlmConfig, spelling: str) -> None:
    if spelling == "as a URL":
        return  # not the name of a tokenizer
    other = here / "copy"
    shutil.copytree(here / "two", other)
    name = SPELLINGS[spelling](here / "two") if spelling in SPELLINGS else str(other)
    if spelling == "with another template":
        (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    wanted = small(config)
    evaluation = wanted.evaluation.model_copy(update={"tokenizers": (str(here / "two"), name)})
    pipeline = HypernetPipeline(wanted.model_copy(update={"evaluation": evaluation}), str(here / "data"))
    with pytest.raises(UserError, match=r"evaluation\.tokenizers: .*(named twice|same tokenizer)"):
        pipeline.require_ready()


def test_a_tokenizer_of_an_earlier_run_is_not_evaluated_with_twice(here: Path, config: AlmConfig) -> None:
    first = HypernetPipeline(small(config), str(here / "data"))
    first.shard()
    assert first._trained_tokenizer
    made = str(first._trained_tokenizer.fetch())
    evaluation = first.config.evaluation.model_copy(update={"tokenizers": (made,)})
    again = HypernetPipeline(first.config.model_copy(update={"evaluation": evaluation}), str(here / "data"))
    with pytest.raises(UserError, match="are the same tokenizer"):
        again.shard()


def test_what_is_taken_once(here: Path) -> None:
    assert each_once(["one", f"{here}/one/", "two", _link(here / "one"), "demo:x"]) == ["one", "two", "demo:x"]
    assert LogConfig(report_to=("wandb", "tensorboard", "wandb")).report_to == ("wandb", "tensorboard")
    assert StudentConfig(model="one", tokenizer=f"{here}/one/").tokenizer == "one"
    assert StudentConfig(model="one", tokenizer="two").tokenizer == "two"


def test_teachers_of_one_place_are_one(here: Path, config: AlmConfig) -> None:
    """Objectives that need the teacher in memory are for a single one."""
    source = config.texts.model_dump(mode="json")
    sources = [{**source, "name": "a"}, {**source, "name": "b", "sample": 0.5, "teacher": "./one/"}]
    content = {
        **config.model_dump(mode="json"),
        "corpus": sources,
        "teacher": "one",
        "objective": {"terms": {"uld": 1}},
    }
    assert AlmConfig.model_validate(content).teachers == ("one",)


def test_names_that_are_not_paths_are_as_they_are() -> None:
    assert place_of("s3://bucket/a/") == place_of("s3://bucket/a") != place_of("s3://bucket/b")
    refuse_repeated(["demo:a", "demo:b", "organization/a", "organization/b"])
