"""The methods: each a student of its own, and what is wrong with a name or a definition is said."""

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from alm_pipeline.config import AlmConfig
from alm_pipeline.methods.definitions import Definitions, read_definitions
from alm_pipeline.methods.registry import METHODS, method_runs
from alm_pipeline.pipeline import Pipeline
from flows.cli.app import app
from storage.errors import UserError

ROOT = Path(__file__).parents[3]


def test_every_method_is_another_student_of_the_same_caches(config: AlmConfig, tmp_path: Path) -> None:
    runs = method_runs(config, list(METHODS), [0])
    assert len({run.config.model_copy(update={"name": None}).model_dump_json() for run in runs}) == len(METHODS)
    pipelines = [Pipeline(run.config, str(tmp_path)) for run in runs]
    for role in ("examples", "alignments", "scores"):
        assert len({pipeline.caches[role].name for pipeline in pipelines}) == 1, role
    assert runs[0].config.score.top_k  # of the method that needs them, for all
    assert method_runs(config, ["alm", "sft"], [0])[0].config.score.top_k == 0


def test_the_command_and_its_page_name_every_method() -> None:
    (option,) = (item for item in get_command(app).commands["compare-methods"].params if item.name == "methods")  # type: ignore[attr-defined]
    page = (ROOT / "docs" / "how-to" / "comparing-methods.md").read_text()
    assert [name for name in METHODS if name not in option.help] == []
    assert [name for name in METHODS if f"`{name}`" not in page] == []


def test_whole_seeds_come_one_after_the_other(config: AlmConfig) -> None:
    runs = method_runs(config, ["sft", "alm"], range(2))
    assert [(run.method, run.seed) for run in runs] == [("sft", 0), ("alm", 0), ("sft", 1), ("alm", 1)]
    assert [run.config.train.seed for run in runs] == [0, 0, 1, 1]
    assert [run.config.name for run in runs][:2] == ["sft, seed 0", "alm, seed 0"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("names", "variants", "message"),
    [
        (["alm", "sfd"], {}, r"there is no method sfd; did you mean sft\?"),
        ([], {}, "name at least one of"),
        (["alm", "sft", "alm"], {}, "alm is named twice"),
        (["alm", "same"], {"same": METHODS["alm"]}, "alm and same are the same student"),
        (["odd"], {"odd": {"objective.gama": 1}}, r"method odd: .*objective\.gama.*gamma"),
        (["odd"], {"odd": {"objective.gamma": "much"}}, r"method odd: .*gamma"),
        (["odd"], {"odd": {"objective.terms": None}}, r"method odd: .*objective\.terms"),
        (["odd"], {"odd": {"name": "mine"}}, "method odd: name: is the same for all methods"),
        (["odd"], {"odd": {"train.seed": 7}}, r"method odd: train\.seed: is the same for all methods.*--seeds"),
        (["odd"], {"odd": {"train": {"seed": 7}}}, r"method odd: train\.seed: is the same"),
        (["odd"], {"odd": {"teacher": "other"}}, "method odd: teacher: is the same.*distance to it is measured"),
        (["odd"], {"odd": {"corpus.name": "other"}}, "method odd: corpus: is the same for all methods"),
        (["odd"], {"odd": {"corpus.max_bytes": 100}}, "method odd: corpus: is the same for all methods"),
        (["odd"], {"odd": {"student.model": "other"}}, r"method odd: student\.model: is the same"),
        (["odd"], {"odd": {"teacher_template": "chatml"}}, "method odd: teacher_template: is the same"),
    ],
)
def test_wrong_methods_are_named(config: AlmConfig, names: list[str], variants: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        method_runs(config, names, [0], variants)


@pytest.mark.parametrize(
    "settings",
    [{"objective.terms": {"bpm": 1.0}}, {"objective": {"terms": {"bpm": 1.0}}}, {"objective.terms.bpm": 1.0}],
    ids=["whole", "nested", "dotted"],
)
def test_all_share_the_likeliest_tokens_however_a_method_names_its_terms(
    config: AlmConfig, settings: dict[str, Any]
) -> None:
    runs = method_runs(config, ["sft", "own"], [0], {"own": settings})
    assert "bpm" in runs[1].config.objective.terms
    assert {run.config.score.top_k for run in runs} == {16}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "has not just the sections"),
        ({"method": {}}, "has not just the sections"),
        ({"methods": ["alm"]}, "methods: is not a mapping"),
        ({"methods": {"alm": {}}}, "alm is built in"),
        ({"methods": {"teacher": {}}}, "teacher is built in"),
        ({"methods": {"a\nb": {}}}, "is not a name"),
        ({"methods": {"mine": 1}}, "mine: is not a mapping"),
        ({"domains": {"maths": "gsm8k.jsonl"}}, "domains: maths: is not a mapping"),
        ({"domains": {"maths": {"sorce": {}}}}, r"domains: maths:\n.*sorce"),
    ],
)
def test_wrong_definitions_are_named(content: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s)mine.yaml: .*{message}"):
        Definitions.parse(content, "mine.yaml")


def test_definitions_are_methods_and_domains() -> None:
    source = {"kind": "files", "urls": ["a.jsonl"]}
    parsed = Definitions.parse({"methods": {"slow": {"train.steps": 3}}, "domains": {"maths": {"source": source}}}, "x")
    assert parsed.methods == {"slow": {"train.steps": 3}}
    assert [(texts.domain, texts.corpus.name) for texts in parsed.domains] == [("maths", "maths")]


@pytest.mark.bad_input
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("methods: [")
    for name in ("mine.yaml", "gone.yaml"):
        with pytest.raises(UserError, match=f"{name}: can't be read as YAML"):
            read_definitions(tmp_path / name)
