"""Paths of a configuration mean the same in any folder: every setting that names a place is known by its type."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.fields.places import place_in, with_absolute_places
from alm_pipeline.config.fields.settings import Setting, settings_of
from alm_pipeline.methods.definitions import with_absolute_definitions
from alm_pipeline.pipeline import Pipeline
from flows.models.compare import ComparisonRequest

NAMES = {
    *("name", "log.project", "log.run_name", "publish.repo"),
    *(f"corpus.{name}" for name in ("name", "text", "messages", "tools", "template_arguments", "marks", "id")),
    *("corpus.normalize", "corpus.source.exclude", "corpus.decontaminate.text"),
    *(f"corpus.source.{name}" for name in ("subset", "split", "revision", "task")),
    *("teacher_template.arguments", "student.template.arguments", "corpus[].teacher_template.arguments"),
    *("score.devices", "score.served.urls", "score.served.model", "score.served.head_device"),
    *("score.served.quantization", "score.served.command", "score.served.arguments", "rounds.sampling.vllm_arguments"),
    *("train.learning_rates", "train.freeze", "train.attention", "train.lora.targets", "rounds.tasks"),
}
"""Text settings that do not name a file or folder: names, columns, patterns, addresses of servers."""
OF_REQUEST = {"methods", "tasks", "definitions", "storage", "folder"}
"""Of a comparison; the last three are made absolute on their own."""


def _with_texts(model: type[BaseModel]) -> dict[str, Setting]:
    """The settings that take a text, by path."""
    settings = {setting.path: setting for setting in settings_of(model)}
    return {path: each for path, each in settings.items() if re.search(r"\bstr\b|Any", str(each.field.annotation))}


def _is_place(setting: Setting) -> bool:
    return place_in(setting.field.annotation, setting.field.metadata) is not None


def test_every_setting_with_a_text_is_a_place_or_a_name() -> None:
    assert {path for path, setting in _with_texts(AlmConfig).items() if not _is_place(setting)} == NAMES
    own = {path: each for path, each in _with_texts(ComparisonRequest).items() if not path.startswith("config.")}
    assert {path for path, setting in own.items() if not _is_place(setting)} == OF_REQUEST


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here/folder").mkdir(parents=True)
    (tmp_path / "here/file.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FOLDER, FILE, TEMPLATE = "here/folder", "here/*.jsonl", "here/file.jinja"


def _relative() -> list[AlmConfig]:
    """Configurations that set every place to a relative path: with a mixture, a dataset, and written examples."""
    templates = [TEMPLATE, {"template": TEMPLATE}]
    sources = [
        {"kind": "files", "urls": [FILE, f"./{FILE}"]},
        {"kind": "datasets", "name": FOLDER},
        {"kind": "written", "examples": FOLDER},
    ]
    student = {"model": FOLDER, "tokenizer": "here/folder/.", "initialization": "omp", "donor": FOLDER}
    network = {"model": FOLDER, "initialization": "hypernetwork", "hypernetwork": FOLDER}
    corpus = {"name": "one", "source": sources[0], "decontaminate": {"questions": [FILE]}}
    own = {"teacher": FOLDER, "teacher_template": templates[1], "weight": 2}
    mixture = [{**corpus, "name": f"{k}", "source": source, **own} for k, source in enumerate(sources)]
    mixture += [{**mixture[0], "name": "other", "teacher_template": templates[0]}]
    rounds = {"task_folder": FOLDER}
    plain = {"corpus": corpus, "teacher": FOLDER, "teacher_template": templates[0], "rounds": rounds}
    contents: list[dict[str, Any]] = [
        {**plain, "student": {**student, "template": templates[0]}},
        {**plain, "student": {**network, "template": templates[1]}, "teacher_template": templates[1]},
        {**plain, "student": student, "corpus": mixture},
    ]
    return [AlmConfig.model_validate(content) for content in contents]


def _texts_of(value: Any, path: str = "") -> dict[str, list[str]]:
    """Return the texts of plain values by path, as settings are called."""
    found: dict[str, list[str]] = {}
    items = value.items() if isinstance(value, dict) else [("[]", item) for item in value]
    for key, item in items:
        inner = f"{path}{key}" if key == "[]" else f"{path}.{key}".lstrip(".")
        for name, texts in (_texts_of(item, inner) if isinstance(item, dict | list) else {inner: [item]}).items():
            found.setdefault(name, []).extend(text for text in texts if isinstance(text, str))
    return found


def test_every_place_is_made_absolute(here: Path) -> None:
    set_somewhere = set[str]()
    for config in _relative():
        before, after = (_texts_of(each.model_dump(mode="json")) for each in (config, with_absolute_places(config)))
        changed = {path for path in before if any(text.removeprefix("./").startswith("here/") for text in before[path])}
        set_somewhere |= {re.sub(r"urls\[\]|questions\[\]", lambda match: match[0][:-2], path) for path in changed}
        for path in before:
            expected = [os.path.normpath(here / text) if path in changed else text for text in before[path]]
            assert after[path] == expected
    places = {path for path, setting in _with_texts(AlmConfig).items() if _is_place(setting)}
    in_mixtures = {path.replace("corpus[].", "corpus.") for path in set_somewhere}
    assert {path for path in places if path not in set_somewhere | in_mixtures} == set()


def test_what_is_not_on_this_machine_stays_as_it_is(config: AlmConfig, here: Path) -> None:
    (here / "chatml").write_text("a file of the name of a known template")
    (here / "bytes").mkdir()
    names = {"teacher": "organization/model", "teacher_template": "chatml"}
    student = config.student.model_copy(update={"model": "demo:smollm2", "tokenizer": "bytes"})
    source = config.texts.source.model_copy(update={"urls": ("s3://bucket/a/*.jsonl", "https://host/b?c=1")})
    corpus = config.texts.model_copy(update={"source": source})
    named = config.model_copy(update={**names, "student": student, "corpus": corpus})
    assert with_absolute_places(named) == named


def test_absolute_paths_decide_the_same_datasets(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = relative_config(config)
    names = [
        {role: dataset.name for role, dataset in pipeline.caches.items()} | {"student": pipeline.student.name}
        for pipeline in (Pipeline(each, "store") for each in (relative, with_absolute_places(relative)))
    ]
    assert names[0] == names[1]


def relative_config(config: AlmConfig) -> AlmConfig:
    """Return a configuration with paths that are relative to this folder."""
    content = config.model_dump(mode="json")
    urls = list(map(os.path.relpath, content["corpus"]["source"]["urls"]))
    content["corpus"]["source"]["urls"] = urls
    content["teacher"] = os.path.relpath(content["teacher"])
    content["student"]["model"] = os.path.relpath(content["student"]["model"])
    return AlmConfig.model_validate(content)


def test_definitions_of_a_comparison_are_made_absolute(here: Path) -> None:
    content = {
        "methods": {
            "mine": {"student.tokenizer": FOLDER, "student.initialization": "fvt", "student.template": TEMPLATE}
        },
        "domains": {"other": {"source": {"kind": "files", "urls": [FILE]}}},
    }
    found = with_absolute_definitions(content)
    assert found["methods"]["mine"] == {
        "student.tokenizer": str(here / FOLDER),
        "student.initialization": "fvt",
        "student.template": str(here / TEMPLATE),
    }
    assert found["domains"]["other"]["source"]["urls"] == [str(here / FILE)]
    assert json.dumps(found)
