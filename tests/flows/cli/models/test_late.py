"""What can be known before a model is loaded is known then: where results go, what texts there are, wrong options."""

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

from alm_pipeline.evaluation.local_tasks import write_task
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.preflight import storage_probe
from flows.cli.app import app
from flows.execution import embedded
from tests.flows.cli.commands import every_command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_folder: str, gemma_folder: str) -> Path:
    """A working folder with questions, a task, and `file`, where no folder can be made; no model can be loaded."""
    rows = [{"question": f"{k}?", "choices": ["one", "two"], "answer": 0} for k in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "few.jsonl").write_text(json.dumps({**rows[0], "prompt": "?"}))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"body": f"{k} and {k + 1}"}) + "\n" for k in range(9)))
    pair = {"prompt": "?", "positive": "one", "negative": "two"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    (tmp_path / "both.yaml").write_text(f"members: [{{model: {llama_folder}}}, {{model: {gemma_folder}}}]")
    bare = shutil.copytree(llama_folder, tmp_path / "bare")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (bare / name).unlink(missing_ok=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    write_task(tmp_path / "tasks", "mine", "multiple_choice", tmp_path / "questions.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelReference, "load", None)
    return tmp_path


LATE = {
    "calibrate MODEL --questions questions.jsonl --prompt question --output file/out": r"output: file/out/.*written",
    "calibrate MODEL --questions few.jsonl --output out": "1 clusters in few: at least 4 are needed",
    "calibrate MODEL --corpus texts.jsonl --text body --examples 3 --output out": "3 clusters in texts: at least 4",
    "evaluate MODEL --tasks mine --task-folder tasks --output file/results.json": r"--output: file/.*written",
    "evaluate MODEL --tasks mine --task-folder tasks --output folder": "--output: folder: is a folder: name a file in",
    "evaluate MODEL --tasks mine --task-folder nowhere": "task folder nowhere: not a folder",
    "edit MODEL file/edited --demonstrations pairs.jsonl": r"FOLDER: file/.*written",
    "transfer MODEL OTHER out --corpus texts.jsonl": r"has no column 'text'; it has 'body'\. Set --text",
    "tokenizers MODEL OTHER --corpus texts.jsonl --text body --out file/out": r"--out: file/.*written",
    "tokenizers MODEL OTHER --corpus texts.jsonl --text body --picture file/a.png": r"--picture: file/.*written",
    "tokenizers nowhere OTHER --corpus texts.jsonl --text body --out tasks": "tasks: exists already: name a new folder",
    "audit nowhere --picture file/a.png": r"--picture: file/.*written",
    "acceptance MODEL MODEL --corpus texts.jsonl --text body --max-tokens 600": "600 new ones are more than its",
}

TASK, DEMONSTRATIONS = "--tasks mine --task-folder tasks", "--demonstrations pairs.jsonl"
NO_DEVICE, NO_TEMPLATE = "nowhere: this machine has no such device", "nowhere.jinja' is neither a file nor the name"
LATE |= {
    "calibrate MODEL --questions questions.jsonl --prompt question --output out --device nowhere": NO_DEVICE,
    "acceptance MODEL MODEL --corpus texts.jsonl --text body --device nowhere": NO_DEVICE,
    f"evaluate MODEL {TASK} --device nowhere": NO_DEVICE,
    f"edit MODEL out {DEMONSTRATIONS} --device nowhere": NO_DEVICE,
    "generate MODEL hello --device nowhere": NO_DEVICE,
    "generate MODEL hello --template nowhere.jinja": NO_TEMPLATE,
    f"evaluate MODEL {TASK} --template nowhere.jinja": NO_TEMPLATE,
    "transfer MODEL OTHER out --template nowhere.jinja": NO_TEMPLATE,
    "generate bare hello --chat": "bare: its tokenizer has no chat template: leave --chat out",
    f"evaluate bare {TASK} --chat": "bare: its tokenizer has no chat template: leave --chat out",
    f"edit bare out {DEMONSTRATIONS} --chat": "bare: its tokenizer has no chat template: leave chat out",
    "transfer MODEL OTHER out --initialization omp --donor ./nowhere": "nowhere: not a local folder",
    "report nowhere file/page.html": r"FILE: file/.*written",
    "curves nowhere --picture file/a.png": r"--picture: file/.*written",
    "curves nowhere --picture a.svg": "--picture a.svg: not a .png file: write FILE.png",
}

CALIBRATE, EDIT = "calibrate MODEL --output out", "edit MODEL out --demonstrations pairs.jsonl"
UNREAD = {
    **{
        f"{CALIBRATE} --questions questions.jsonl {option}": f"{name}: not used"
        for option, name in {
            "--task-folder tasks": "task_folder",
            "--few-shot 2": "few_shot",
            "--text body": "text",
            "--examples 3": "examples",
            "--places 3": "places",
        }.items()
    },
    **{
        f"{CALIBRATE} --questions mine --{name} x": f"{name}: not used, as mine is a task"
        for name in ("prompt", "choices", "answer", "cluster", "delimiter")
    },
    **{
        f"{CALIBRATE} --corpus texts.jsonl --text body {option}": f"{name}: not used, as no questions are named"
        for option, name in {"--limit 3": "limit", "--few-shot 3": "few_shot", "--prompt x": "prompt"}.items()
    },
    "calibrate MODEL OTHER --output out --questions questions.jsonl --weights 0.5 --method ensemble --density 0.5": (
        "density: not used, as an ensemble merges no tensors"
    ),
    "calibrate MODEL OTHER --output out --questions questions.jsonl --weights 0.5 --mask-seed 3": (
        "mask_seed: not used, as linear draws nothing"
    ),
    "merge MODEL OTHER out --seed 3": "seed: not used, as linear draws nothing, and only dare does: leave it out",
    "transfer MODEL OTHER out --donor OTHER": "donor: not used, as the initialization is fvt, and not omp",
    "transfer MODEL OTHER out --omp-terms 3": "omp_terms: not used",
    "transfer MODEL OTHER out --text body --examples 3": "text, examples: not used, as no corpus is named: leave them",
    "merge MODEL OTHER out --density 0.5": "density 0.5: only ties and dare have one",
    "transfer MODEL OTHER out --hypernetwork OTHER": "hypernetwork belongs to initialization hypernetwork",
    **{
        f"calibrate MODEL OTHER --output out --questions questions.jsonl {option}": "are of merges: name their weights"
        for option in ("--method ties", "--density 0.5", "--mask-seed 3")
    },
    "generate MODEL hello --top-p 0.5 --seed 3": "top_p, seed: not used, as temperature 0 draws nothing: leave them",
    "generate MODEL hello --tokenizer OTHER": "--tokenizer and --hypernetwork belong together",
    "generate MODEL hello --hypernetwork OTHER": "--tokenizer and --hypernetwork belong together",
    **dict.fromkeys(
        (
            "generate both.yaml hello --device cpu",
            "generate both.yaml hello --trust-remote-code",
            "generate both.yaml hello --dtype bfloat16",
            "evaluate both.yaml --tasks mine --task-folder tasks --device cpu",
            "compare both.yaml --corpus texts.jsonl --text body --dtype bfloat16",
            "calibrate both.yaml --output out --questions questions.jsonl --prompt question --trust-remote-code",
        ),
        "not used, as an ensemble's file sets that for each member: leave it out",
    ),
    "tokenizers MODEL OTHER --corpus texts.jsonl --text body --trust-remote-code": "trust_remote_code: not used, as no",
    "serve MODEL --print --hidden-states --file other.json --top-k 3": "file, top_k: not used, as no plugin reads it",
    "run transfer --plan --again": "again: not used, as --plan runs nothing",
    "plan transfer --measure --score-rate 9 --train-rate 9": "measure: not used, as all rates are given",
    "plan transfer --until scores --train-rate 9": "train_rate: not used, as a plan until scores trains nothing",
    "write transfer --by teacher --model OTHER": "model and revision are for a server",
    "write transfer --by teacher --revision 3": "model and revision are for a server",
    "init new.yaml --goal distill --tokenizer OTHER": "only with --goal tokenizer",
    f"{EDIT} --method mean_shift --nonlinearity elu": "mean_shift adds a vector and has no nonlinearity",
    f"{EDIT} --task-folder tasks": "task_folder is not used without tasks",
    f"{EDIT} --limit 3": "limit is not used without tasks",
    f"{EDIT} --control-text body": "control_text is not used without control",
    f"{EDIT} --control-examples 3": "control_examples is not used without control",
    f"{EDIT} --strength 2": "sea has no strength: leave it out",
    f"{EDIT} --method mean_shift --energy 0.5 --no-center": "mean_shift has no energy and no center: leave them out",
}
"""Options that another one makes pointless: what they ask for would not happen, and nothing would say so."""


FOR_SOME = re.compile(r"^With |^Instead of")


def test_every_option_for_some_uses_alone_is_here() -> None:
    """An option that another one has to come with is among those that are refused without it."""
    options = {
        (name, parameter)
        for name, function in every_command(app)
        for parameter, found in inspect.signature(function).parameters.items()
        for option in getattr(found.annotation, "__metadata__", ())
        if FOR_SOME.search(getattr(option, "help", None) or "") and isinstance(option, OptionInfo)
    }
    assert options
    tried = {
        (command.split()[0], word.removeprefix("--").removeprefix("no-").replace("-", "_"))
        for command in UNREAD
        for word in command.split()
        if word.startswith("--")
    }
    assert options - tried == set()


AUDITED = {("audit", "device")}
"""tested with the audits, which need a store"""


@pytest.mark.parametrize(("name", "value"), {"device": "nowhere", "template": "nowhere.jinja", "chat": ""}.items())
def test_every_command_with_such_an_option_is_here(name: str, value: str) -> None:
    of_templates = {("merge", "template"), ("compare-methods", "chat")}  # a choice; and a run has its own checks
    options = {
        (command, name) for command, function in every_command(app) if name in inspect.signature(function).parameters
    }
    tried = {(command.split()[0], name) for command in LATE if f"--{name} {value}".strip() in command}
    assert options - tried - AUDITED - of_templates == set()


SERVED = ("run", "plan", "check", "on-policy", "write", "compare-methods")


@pytest.mark.bad_input
@pytest.mark.parametrize("wrong", ["--corpus nowhere.jsonl", "--corpus good.jsonl --teacher ./nowhere"])
@pytest.mark.parametrize("command", SERVED)
def test_it_is_known_before_a_server_starts(
    here: Path, command: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "good.jsonl").write_text("".join(json.dumps({"text": f"{k} and {k + 1}"}) + "\n" for k in range(99)))
    monkeypatch.setattr(embedded, "use_server", None)
    extra = ["--set", "rounds.count=1"] if command == "on-policy" else []
    result = CliRunner().invoke(app, [command, "transfer", *wrong.split(), *extra, "--storage", str(here / "store")])
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "nowhere" in result.output + result.stderr


def test_every_command_that_starts_a_server_is_here() -> None:
    starting = {name for name, function in every_command(app) if "use_server" in inspect.getsource(function)}
    assert starting <= {*SERVED}


@pytest.mark.bad_input
@pytest.mark.parametrize("command", ["audit", "tokenizers", "curves"])
def test_pictures_that_cannot_be_drawn_are_refused_first(
    here: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_probe, "can_draw", lambda: False)
    corpus = ["--corpus", "texts.jsonl"] if command == "tokenizers" else []
    result = CliRunner().invoke(app, [command, "nowhere", *corpus, "--picture", "a.png"])
    assert result.exit_code == 1, result.output
    assert "--picture: pictures need matplotlib: pip install 'alm-pipeline[pictures]'" in " ".join(
        result.stderr.split()
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("command", LATE | UNREAD)
def test_it_is_known_before_a_model_is_loaded(here: Path, command: str, llama_folder: str, gemma_folder: str) -> None:
    names = {"MODEL": llama_folder, "OTHER": gemma_folder}
    arguments = [names.get(word, word) for word in command.split()]
    stores = {"calibrate", "edit"} & {arguments[0]}
    result = CliRunner().invoke(app, [*arguments, *(["--storage", str(here / "store")] if stores else [])])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    shown = " ".join(result.stderr.split())
    assert re.search((LATE | UNREAD)[command], shown), shown
    assert not (here / "out").exists()
