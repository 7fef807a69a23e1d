"""`--json`: every command that prints a table also prints its rows as one JSON document."""

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import flows.alm
import flows.cli.app as app_module
from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.report import summarize
from flows.cli import check
from flows.cli.app import app
from flows.execution import embedded
from flows.terminal import console
from tests.flows.loopback import ROOT

TABLES = {"print_table", "print_rows", "summary_table", "results_table", "Table", "Tree"}
"""what makes a table, or a tree"""
NEEDS_MORE = {
    "compare-methods",
    "edit",
    "evaluate",
    "transfer",
    "repair",
    "plan",
    "check",
    "calibrate",
    "hypernet",
    "on-policy",
    "write",
}
"""commands whose own tests run them with --json: they need more than a store"""


def _functions() -> dict[str, ast.FunctionDef]:
    files = (ROOT / "flows" / "cli").rglob("*.py")
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def _called(function: ast.FunctionDef) -> set[str]:
    names = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {getattr(name, "id", getattr(name, "attr", "")) for name in names}


def _reaches_a_table(name: str, functions: Mapping[str, ast.FunctionDef]) -> bool:
    seen, waiting = set[str](), [name]
    while waiting:
        called = _called(functions[waiting.pop()])
        if called & TABLES:
            return True
        waiting += [other for other in called & functions.keys() if other not in seen]
        seen |= called
    return False


def _commands() -> dict[str, Any]:
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return commands


def _takes_json(command: Any) -> bool:
    return any("--json" in parameter.opts for parameter in command.params)


def test_every_command_that_prints_a_table_takes_json() -> None:
    functions = _functions()
    printing = {name for name, item in _commands().items() if _reaches_a_table(item.callback.__name__, functions)}
    assert printing >= {"list", "verify", "repair", "lineage", "prune", "head", "inspect", "compare", "run", "evaluate"}
    assert {name for name in printing if not _takes_json(_commands()[name])} == set()


@pytest.fixture(scope="module")
def pipeline(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    corpus = config.corpus.model_copy(update={"max_bytes": 100})
    finished = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path_factory.mktemp("store")))
    finished.run()
    Path(finished.scores.url, ".shard-00000.parquet.0123abcd.tmp").write_bytes(b"x" * 50_000)
    return finished


def _lines(pipeline: Pipeline) -> dict[str, list[str]]:
    """A line for each command and way of it, and for each kind of dataset and folder of `head`."""
    root, alignments = pipeline.root, pipeline.alignments.url
    datasets = {dataset.kind: dataset.url for dataset in pipeline.caches.values()}
    return {
        "list": [root],
        "list students": [root, "--students"],
        "verify": [root],
        "lineage": [pipeline.student.url],
        "prune": [root, "--older-than", "0"],
        "describe": [pipeline.student.url],
        "inspect": [alignments, "--chunks", "4"],
        "audit": [pipeline.student.url, "--examples", "1", "--tokens", "12", "--budget", "5", "--largest", "2"],
        "inspect summary": [alignments, "--summary"],
        "compare": [pipeline.config.teacher, "--corpus", pipeline.config.corpus.source.urls[0], "--examples", "3"],  # type: ignore[union-attr]
        "acceptance": [
            *(pipeline.config.teacher, pipeline.config.teacher),
            *("--corpus", pipeline.config.corpus.source.urls[0], "--examples", "3", "--max-tokens", "4"),  # type: ignore[union-attr]
        ],
        "contamination": [
            *("transfer", "--corpus", pipeline.config.corpus.source.urls[0], "--words", "3", "--text", "{text}"),  # type: ignore[union-attr]
            *("--questions", pipeline.config.corpus.source.urls[0]),  # type: ignore[union-attr]
        ],
        "tokenizers": [
            *(pipeline.config.teacher, pipeline.config.student.model),
            *("--corpus", pipeline.config.corpus.source.urls[0], "--model", pipeline.config.student.model),  # type: ignore[union-attr]
        ],
        "run": ["transfer"],
        **{f"head {kind}": [url] for kind, url in datasets.items()},
        "head student": [pipeline.student.url],
        "delete": [pipeline.student.url],
    }


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def run_of_the_store(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """`alm run` reports this store, without a server."""
    result = {"seconds": {"shard": 1.5, "train": 2.5}, "planned": []}
    monkeypatch.setattr(flows.alm, "alm", lambda **_: summarize(pipeline).model_dump() | result)
    monkeypatch.setattr(embedded, "prepare", lambda: None)
    monkeypatch.setattr(embedded, "use_server", lambda: None)
    monkeypatch.setattr(check, "require_ready", lambda *_: None)
    monkeypatch.setattr(app_module, "log_to_stderr", lambda: None)


def _values(document: Any) -> Iterator[Any]:
    """Every plain value in a document."""
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list):
        for item in document:
            yield from _values(item)
    else:
        yield document


def test_json_has_the_rows_of_the_tables(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, run_of_the_store: None
) -> None:
    """All values that the tables' rows hold, before they are formatted, are in the document."""
    rows: list[Mapping[str, Any]] = []
    print_rows = console.InertConsole.print_rows

    def keep(self: Any, columns: Any, shown: Any, title: Any = None) -> None:
        made_of_several = {"summary", "deletion", "state"} | ({"bytes"} if columns[0].key == "bytes" else set())
        rows.extend(
            {column.key: row.get(column.key) for column in columns if column.key not in made_of_several}
            for row in shown
        )
        print_rows(self, columns, shown, title)

    monkeypatch.setattr(console.InertConsole, "print_rows", keep)
    lines = _lines(pipeline)
    taking = {name for name, command in _commands().items() if _takes_json(command)}
    assert taking - {name.split()[0] for name in lines} - NEEDS_MORE == set(), "_lines lacks a line for these"
    with_rows = set()
    for name, arguments in lines.items():
        rows.clear()
        line = [name.split()[0], *arguments]
        result = invoke(*line, "--json")
        assert result.exit_code == 0, (name, result.output)
        document = json.loads(result.stdout)
        assert isinstance(document, dict)
        if name == "delete":
            continue  # it is gone now
        assert invoke(*line).exit_code == 0
        found = [*map(repr, _values(document)), *map(repr, _parts(document))]
        assert [value for row in rows for value in row.values() if repr(value) not in found] == [], name
        with_rows |= {name} if rows else set()
    assert with_rows >= {"list", "list students", "prune", "inspect", "compare", "head tokens", "head student"}


def _parts(document: Any) -> Iterator[Any]:
    """Every list and mapping in a document."""
    if isinstance(document, dict | list):
        yield document
        for item in document.values() if isinstance(document, dict) else document:
            yield from _parts(item)
