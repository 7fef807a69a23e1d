"""`--set FIELD=VALUE` is YAML, and a text where its field takes text: one notation for options and files."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from alm_pipeline.config import AlmConfig, load_config
from alm_pipeline.config.fields.settings import annotation_at, settings_of
from alm_pipeline.config.fields.values import parse_text, parse_value, plain_types
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.recipes.recipes import maths
from storage.errors import UserError

TEXTS = {
    "question": "question",
    "{question}": "{question}",
    "{question} {answer}": "{question} {answer}",
    "Q: {question}": "Q: {question}",
    "{question}: {answer}": "{question}: {answer}",
    "'Q: {question}'": "Q: {question}",
    '"Q: {question}\\nA: {answer}"': "Q: {question}\nA: {answer}",
    "Q: {question}\nA: {answer}": "Q: {question}\nA: {answer}",
    "Question {question}\nAnswer {answer}": "Question {question}\nAnswer {answer}",
    "|-\n  Q: {question}\n  A: {answer}": "Q: {question}\nA: {answer}",
    "[{question}]": "[{question}]",
    "- {question}": "- {question}",
    "* {question}": "* {question}",
    "{question} # {answer}": "{question} # {answer}",
    "2024": "2024",
    "2024-01-02": "2024-01-02",
    "yes": "yes",
    "null": "null",
    "": "",
}


@pytest.mark.parametrize(("typed", "text"), TEXTS.items())
def test_a_text_is_what_yaml_reads_or_else_as_it_was_typed(typed: str, text: str) -> None:
    assert parse_text(typed) == text
    assert parse_value(typed, annotation_at(AlmConfig, ["corpus", "text"])) == text


@pytest.mark.parametrize(("typed", "text"), TEXTS.items())
def test_a_file_means_the_same_or_refuses_it(typed: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    content = maths().model_dump(mode="json")
    del content["corpus"]["text"]
    lines = yaml.safe_dump({key: value for key, value in content.items() if key != "corpus"})
    corpus = yaml.safe_dump(content["corpus"]).replace("\n", "\n  ")
    block = typed.replace("\n", "\n  ") if typed.startswith("|") else typed
    file.write_text(f"{lines}corpus:\n  {corpus}text: {block}\n")
    try:
        read = load_config(file).corpus.text
    except UserError:
        assert typed[:1] not in ("'", '"', "|")
        assert typed != "question"
    else:
        assert read == text


@pytest.mark.parametrize(
    ("path", "typed", "value"),
    [
        ("train.learning_rate", "1e-4", "1e-4"),  # YAML 1.1 wants a point; pydantic reads the number
        ("train.steps", "3", 3),
        ("student.tokenizer", "null", None),
        ("corpus.messages", "null", None),
        ("corpus.id", "7", "7"),
        ("train.freeze", "[a, b]", ["a", "b"]),
        ("student.tokenizer", "{vocab_size: 400}", {"vocab_size": 400}),
        ("student.tokenizer", "7", "7"),
        ("objective.terms", "{alm: 1, sft: 2}", {"alm": 1, "sft": 2}),
        ("objective.terms.alm", "{start: 0, end: 1, steps: 3}", {"start": 0, "end": 1, "steps": 3}),
        ("corpus.normalize", "[]", []),
        ("corpus.normalize", "auto", "auto"),
        ("train.compile", "true", True),
        ("nothing.like.this", "{a: 1}", {"a": 1}),
    ],
)
def test_other_values_are_yaml(path: str, typed: str, value: Any) -> None:
    assert parse_value(typed, annotation_at(AlmConfig, path.split("."))) == value


@pytest.mark.parametrize("setting", settings_of(AlmConfig), ids=lambda setting: setting.path)
def test_a_template_reaches_every_field_of_texts_as_it_was_typed(setting: Any) -> None:
    """As a template may only be in `corpus.text`, the others refuse it or take it, but never change it."""
    annotations = annotation_at(AlmConfig, setting.path.split("."))
    is_text = any(str in plain_types(annotation) for annotation in annotations)
    takes_mappings = any(not plain_types(annotation) <= {str, type(None)} for annotation in annotations)
    if is_text and not takes_mappings:
        assert parse_value("Q: {question}", annotations) == "Q: {question}"


@pytest.mark.bad_input
@pytest.mark.parametrize("escape", ["\\n", "\\t", "\\r"])
@pytest.mark.parametrize(
    "typed", ["Q: {question}%sA: {answer}", "'Q: {question}%sA: {answer}'", "{question}%s{answer}"]
)
def test_an_escape_that_is_none_is_refused_with_the_fix(typed: str, escape: str) -> None:
    text = parse_text(typed % escape)
    with pytest.raises(UserError) as caught:
        override(maths(), Overrides(settings={"corpus.text": text}))
    fix = re.split(r"in which \\\w is [a-z ]+: ", str(caught.value))[1]
    assert fix == f'"{text}"'
    written = override(maths(), Overrides(settings={"corpus.text": parse_text(fix)})).corpus.text
    assert written == text.replace(escape, {"n": "\n", "t": "\t", "r": "\r"}[escape[1]])


@pytest.mark.parametrize("text", ["{question}\n{answer}", "a\\nb", "\\frac{question}", "{question}\t{answer}"])
def test_texts_with_real_line_ends_and_other_backslashes_are_taken(text: str) -> None:
    assert override(maths(), Overrides(settings={"corpus.text": text})).corpus.text == text


@pytest.mark.bad_input
@pytest.mark.parametrize("typed", ["{question} {answer}", "Q: {question}", "Q: {question}\\nA: {answer}", "{question}"])
def test_a_file_without_quotes_is_answered_with_the_quotes(typed: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"corpus:\n  text: {typed}\n")
    with pytest.raises(UserError, match="is put into quotes") as caught:
        load_config(file)
    if typed != "{question}":  # which is a mapping for YAML
        quote = '"' if "\\" in typed else "'"
        assert f"text: {quote}{typed}{quote}" in str(caught.value)


@pytest.mark.bad_input
def test_a_field_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  steps: 3\n  seed: 1\n  steps: 4\n")
    with pytest.raises(UserError, match="line 2: 'steps' is there twice"):
        load_config(file)
