"""Ctrl-C, SIGTERM and a closed terminal at every moment of `alm run`, and the student that its last run makes.

One store is worked on by a chain of runs. Each is stopped at a later moment than the one before, so each moment is in
the run that gets there first. ALM_SOAK=10 stops at every moment with each signal.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from alm_pipeline.config import AlmConfig, TrainedTokenizer
from alm_pipeline.pipeline import Pipeline
from tests.flows.loopback import Loopback
from tests.terminal import ALM, CTRL_C, Terminal

pytestmark = [pytest.mark.flow, pytest.mark.timeout(3000)]

SOAK = int(os.environ.get("ALM_SOAK", "1"))
LIMIT_S = 20
"""3 s are promised; a busy machine is slower"""
STOPS: dict[str, tuple[Callable[[Terminal], None], int, str]] = {
    "ctrl-c": (lambda terminal: terminal.type(CTRL_C), 130, "interrupted: the same command goes on from here"),
    "term": (lambda terminal: os.kill(terminal.pid, signal.SIGTERM), 143, "ended by SIGTERM: the same command goes on"),
    "nothing": (lambda _: None, 130, "interrupted: the same command goes on from here"),
    "hangup": (lambda terminal: terminal.close(), 129, ""),
}
MOMENTS: dict[str, tuple[str, Callable[[Terminal, Path], bool]]] = {
    "imports": ("ctrl-c", lambda terminal, _: len(terminal.processes()) > 1),
    "server starting": ("ctrl-c", lambda terminal, _: terminal.is_running("flows.execution.server_process")),
    "tokenizer": ("hangup", lambda _, root: any(root.glob("tokenizers/*/*"))),
    "corpus": ("term", lambda _, root: any(root.glob("examples/*"))),
    "tokenize": ("ctrl-c", lambda _, root: any(root.glob("tokens/*/*"))),
    "align": ("term", lambda _, root: any(root.glob("alignments/*/*"))),
    "pair biases": ("ctrl-c", lambda _, root: any(root.glob("pair_biases/*"))),
    "score": ("hangup", lambda _, root: any(root.glob("teacher_scores/*/*"))),
    "evaluate before": ("ctrl-c", lambda _, root: any(root.glob("students/*"))),
    "train": ("ctrl-c", lambda _, root: any(root.glob("students/*/checkpoints/checkpoint-2/*"))),
    "checkpoint": ("term", lambda _, root: any(root.glob("students/*/checkpoints/checkpoint-4/*"))),
    "save": ("ctrl-c", lambda _, root: any(root.glob("students/*/model.safetensors"))),
    "publish": ("hangup", lambda _, root: any(root.glob("students/*/manifest.json"))),
    "at exit": ("ctrl-c", lambda terminal, _: "bytes aligned" in terminal.text),
}


@pytest.fixture(scope="module")
def every_stage(config: AlmConfig) -> AlmConfig:
    student = config.student.model_copy(update={"tokenizer": TrainedTokenizer(vocab_size=320)})
    train = config.train.model_copy(update={"steps": 6, "ema": 0.9, "keep_checkpoints": 2})
    objective = config.objective.model_copy(update={"chunking": "pair_bias"})
    evaluation = config.evaluation.model_copy(update={"steps": 2})
    changes = {"student": student, "train": train, "objective": objective, "evaluation": evaluation}
    return config.model_copy(update=changes)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """A function that runs `alm` in a terminal, in an empty folder."""
    opened: list[Terminal] = []

    def run(*arguments: str, **environment: str) -> Terminal:
        opened.append(Terminal(*ALM, *arguments, cwd=tmp_path, environment=environment))
        return opened[-1]

    yield run
    for terminal in opened:
        terminal.kill()


def write(config: AlmConfig, folder: Path) -> str:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return str(file)


def assert_stopped(terminal: Terminal, stop: str) -> None:
    send, status, sentence = STOPS[stop]
    send(terminal)
    seconds = terminal.seconds_to_end(LIMIT_S)
    print(f"{stop}: {seconds:.2f} s")  # pytest -s shows them
    assert terminal.status == status, terminal.text[-3000:]
    assert "Traceback" not in terminal.text
    assert not re.search("[a-z]Error|[Ee]rror:", terminal.text), terminal.text[-3000:]
    assert not terminal.processes()
    if sentence:
        last = terminal.text.rstrip().splitlines()[-1]
        assert last.startswith(sentence), terminal.text[-3000:]
        assert terminal.text.count(sentence) == 1
        assert terminal.output.rfind(b"\x1b[?25h") > terminal.output.rfind(b"\x1b[?25l")  # the cursor is shown


def student_files(root: Path) -> dict[str, bytes]:
    """The finished student's files; speeds differ between runs."""
    (folder,) = root.glob("students/*")
    assert (folder / "manifest.json").exists()
    files = [
        file for file in folder.rglob("*") if file.is_file() and file.name[0] != "." and file.parent.name != "runs"
    ]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def unbroken(every_stage: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("unbroken")
    Pipeline(every_stage, str(root)).run()
    return student_files(root)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for the runs that are not about the embedded one, which takes seconds to start."""
    loopback = Loopback(tmp_path_factory.mktemp("prefect"))
    loopback.start()
    yield loopback.url
    loopback.close()


# with each signal, before and within the stages; a run that starts takes ten seconds
FEW = ["imports", "corpus", "score", "checkpoint"]


@pytest.mark.parametrize("moments", [FEW, pytest.param([*MOMENTS], marks=pytest.mark.long)])
def test_a_run_stops_at_every_moment_and_resumes_to_the_same_bytes(
    terminals: Callable[..., Terminal],
    every_stage: AlmConfig,
    unbroken: dict[str, bytes],
    server: str,
    tmp_path: Path,
    moments: list[str],
) -> None:
    root = tmp_path / "data"
    arguments = ("run", write(every_stage, tmp_path), "--storage", str(root))
    for moment in moments:
        stop, has_come = MOMENTS[moment]
        environment = {} if moment == "server starting" else {"PREFECT_API_URL": server}
        for each in ("ctrl-c", "term", "hangup") if SOAK > 1 else (stop,):
            terminal = terminals(*arguments, **environment)
            terminal.wait_until(lambda: has_come(terminal, root), moment)  # noqa: B023  # called at once
            print(moment, end=", ")
            assert_stopped(terminal, each)
    terminal = terminals(*arguments, PREFECT_API_URL=server)
    terminal.seconds_to_end(600)
    assert terminal.status == 0, terminal.text[-3000:]
    assert student_files(root) == unbroken


@pytest.mark.long
def test_training_processes_stop_with_their_run(
    terminals: Callable[..., Terminal], config: AlmConfig, server: str, tmp_path: Path
) -> None:
    """By Ctrl-C, when `alm` is killed, and when one of them is killed; the next run has the same bytes each time."""
    train = config.train.model_copy(update={"processes": 2, "accumulation": 2, "steps": 30})
    both = config.model_copy(update={"train": train})
    root = tmp_path / "data"
    Pipeline(both, str(root)).cache()
    arguments = ("run", write(both, tmp_path), "--storage", str(root))

    def newest_checkpoint() -> int:
        """Its step; a killed run may have written it after its end was asked for."""
        paths = root.glob("students/*/checkpoints/checkpoint-*")
        return max((int(path.name.split("-")[1]) for path in paths), default=0)

    def training() -> Terminal:
        """Return a run that has written a checkpoint of its own."""
        before, terminal = newest_checkpoint(), terminals(*arguments, PREFECT_API_URL=server)
        terminal.wait_until(lambda: newest_checkpoint() > before, "a checkpoint")
        assert terminal.is_running("alm_pipeline.training_process")
        return terminal

    assert_stopped(training(), "ctrl-c")
    killed = training()
    os.kill(killed.pid, signal.SIGKILL)
    killed.seconds_to_end(LIMIT_S)
    killed.wait_until_gone(LIMIT_S)
    hurt = training()
    (second,) = (process for process in hurt.processes() if process.environ().get("RANK") == "1")
    second.kill()
    hurt.seconds_to_end(LIMIT_S)
    assert hurt.status == 1
    assert "error: training process 1 was killed (SIGKILL), which ended the others: out of memory" in hurt.text
    assert "Traceback" not in hurt.text
    assert "Gloo" not in hurt.text
    assert not hurt.processes()
    last = terminals(*arguments, PREFECT_API_URL=server)
    last.seconds_to_end(600)
    assert last.status == 0, last.text[-3000:]
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    for kind in root.iterdir():
        if kind.name != "students":
            (unbroken / kind.name).symlink_to(kind)
    Pipeline(both, str(unbroken)).train()
    assert student_files(root) == student_files(unbroken)


def test_a_second_ctrl_c_ends_a_run_at_once(
    terminals: Callable[..., Terminal], config: AlmConfig, server: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    terminal = terminals("run", write(config, tmp_path), "--storage", str(root), PREFECT_API_URL=server)
    terminal.wait_until(lambda: any(root.glob("tokens/*")), "tokens")
    for _ in range(8):
        if not terminal.ended():
            terminal.type(CTRL_C)
        terminal.read(0.2)
    assert_stopped(terminal, "nothing")


COMMANDS = {
    "show": ("show",),
    "generate": ("generate", "demo:smollm2-135m", "x"),
    "compare": ("compare", "MODEL", "--corpus", "CORPUS"),
    "evaluate": ("evaluate", "MODEL", "--tasks", "gsm8k"),
    "transfer": ("transfer", "MODEL", "MODEL", "new"),
    "verify": ("verify", "."),
    "repair": ("repair", "."),
    "prune": ("prune", ".", "--apply"),
    "deploy": ("deploy",),
    "list": ("list", "."),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_shows_a_traceback_when_it_is_interrupted(
    terminals: Callable[..., Terminal], config: AlmConfig, command: str
) -> None:
    names = {"MODEL": config.student.model, "CORPUS": config.corpus.source.urls[0]}
    terminal = terminals(*(names.get(argument, argument) for argument in COMMANDS[command]))
    terminal.wait_until(lambda: len(terminal.processes()) > 1, "the worker")
    terminal.type(CTRL_C)
    terminal.seconds_to_end(LIMIT_S)
    advice = "the same command goes on" if command == "repair" else "run the same command again"
    assert terminal.status == 130
    assert terminal.text.rstrip().splitlines()[-1].startswith(f"interrupted: {advice}")
    assert "Traceback" not in terminal.text
    assert not terminal.processes()


def test_nohup_is_respected(terminals: Callable[..., Terminal], tmp_path: Path) -> None:
    """A signal that was ignored when the command started does not end it."""
    terminal = Terminal("/usr/bin/env", "nohup", *ALM, "show", cwd=tmp_path)
    terminal.wait_until(lambda: len(terminal.processes()) > 1, "the worker")
    os.kill(terminal.pid, signal.SIGHUP)
    terminal.seconds_to_end(200)
    assert terminal.status == 0, terminal.text


def test_a_worker_that_is_killed_is_reported(terminals: Callable[..., Terminal]) -> None:
    terminal = terminals("list", ".")
    terminal.wait_until(lambda: bool(psutil.Process(terminal.pid).children()), "the worker")
    psutil.Process(terminal.pid).children()[0].kill()
    terminal.seconds_to_end(LIMIT_S)
    assert terminal.status == 137
    assert "error: the command was killed (SIGKILL): out of memory, or by hand? Run the same" in terminal.text
