"""What a corpus's rows are: recognized and configured layouts are one, and the rest is refused with the fix."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import CorpusConfig, HubSource
from alm_pipeline.config.corpus import OF_CONVERSATIONS, Layout
from alm_pipeline.corpus import OpenSource, open_source
from alm_pipeline.corpus.files.versions import HashedFiles
from alm_pipeline.corpus.formats import layouts
from alm_pipeline.corpus.stage import corpus_identity
from storage.errors import UserError
from tests.alm_pipeline.corpus.files_of_kinds import arrow_stream
from tests.alm_pipeline.corpus.formats.test_messages import CHAT, GOOD, TURNS
from tests.alm_pipeline.corpus.helpers import corpus, corpus_of, jsonl, read

PREFERENCE = {"chosen": CHAT, "rejected": CHAT}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(jsonl(*rows))
    return path


def resolve_layout(config: CorpusConfig) -> CorpusConfig:
    return layouts.resolve_layout(config, open_source(config.source))


def line_of(config: CorpusConfig) -> str | None:
    source = open_source(config.source)
    return layouts.layout_line(resolve_layout(config), source)


def test_every_layout_has_a_name_and_an_example() -> None:
    assert set(layouts.READ_AS) == set(GOOD) == set(get_args(Layout))


@pytest.mark.parametrize("layout", GOOD)
def test_a_recognized_layout_and_one_that_is_set_are_one_corpus(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path, GOOD[layout])
    recognized, explicit = corpus(path), corpus(path, layout=layout)
    assert resolve_layout(recognized) == resolve_layout(explicit)
    assert corpus_identity(recognized, str(tmp_path / "s")) == corpus_identity(explicit, str(tmp_path / "s"))
    assert read(recognized) == read(explicit)
    resolved = resolve_layout(recognized)
    assert resolve_layout(resolved) == resolved


@pytest.mark.parametrize(("settings", "row"), [({}, GOOD["text"]), ({"messages": "messages"}, GOOD["messages"])])
def test_texts_and_messages_keep_the_names_they_had(tmp_path: Path, settings: Any, row: Any) -> None:
    config = corpus(write(tmp_path, row), **settings)
    before = {name: value for name, value in config.model_dump(mode="json").items() if name not in ("source", "name")}
    # part of the names only where they are set
    for name in ("one_sided", "deduplicate", "decontaminate", *OF_CONVERSATIONS):
        before.pop(name)
    assert before.pop("layout") == "auto"
    assert corpus_identity(config, str(tmp_path / "s"))["config"] == before


@pytest.mark.parametrize(
    ("row", "layout", "column"),
    [
        ({"conversations": CHAT}, "messages", "conversations"),
        ({"conversation": TURNS}, "sharegpt", "conversation"),
        ({"messages": TURNS}, "sharegpt", "messages"),
        ({"messages": json.dumps(CHAT)}, "messages", "messages"),
        ({"prompt": "x", "prompt_id": "1", "messages": CHAT}, "messages", "messages"),
        ({"text": "x", "messages": CHAT, "conversations": TURNS}, "text", None),
        ({"instruction": "x", "output": "y", "text": "x y"}, "text", None),
        ({"prompt": "x", "completion": "y", "instruction": "a", "output": "b"}, "prompt_completion", None),
        ({"conversations": TURNS, "chosen": "x", "rejected": "y"}, "sharegpt", "conversations"),
    ],
)
def test_the_columns_decide(tmp_path: Path, row: Any, layout: str, column: str | None) -> None:
    resolved = resolve_layout(corpus(write(tmp_path, {"id": 1}, row)))
    assert (resolved.layout, resolved.messages) == (layout, column)


@pytest.mark.parametrize(("turns", "layout"), [(TURNS, "sharegpt"), (CHAT, "messages"), (5, "messages")])
def test_a_column_of_conversations_that_is_named_is_of_either_form(tmp_path: Path, turns: Any, layout: str) -> None:
    assert resolve_layout(corpus(write(tmp_path, {"chat": turns}), messages="chat")).layout == layout


def test_a_text_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    config = corpus(write(tmp_path, {"conversations": TURNS, "body": "x"}), text="body")
    assert [document.text for document in read(config)[0]] == ["x"]


def test_texts_may_begin_after_other_rows(tmp_path: Path) -> None:
    path = write(tmp_path, *[{"id": k} for k in range(200)], {"text": "late"})
    found, dropped = read(corpus(path))
    assert [document.text for document in found] == ["late"]
    assert dropped == {"missing_column": 200}


def test_rows_of_another_form_are_counted(tmp_path: Path) -> None:
    found, dropped = read(corpus(write(tmp_path, *GOOD.values(), GOOD["sharegpt"]), layout="sharegpt"))
    assert len(found) == 2
    assert dropped == {"missing_column": 4}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (GOOD["text"], None),
        (GOOD["sharegpt"], "corpus test is read as sharegpt: conversations, column 'conversations'"),
        (GOOD["messages"], "corpus test is read as messages: conversations, column 'messages'"),
        (GOOD["alpaca"], "corpus test is read as alpaca: instruction, input and output as conversations"),
        (GOOD["prompt_completion"], "corpus test is read as prompt_completion: only completions are learned"),
        ({**GOOD["messages"], "tools": [{}]}, "; not used: column 'tools'"),
        ({**GOOD["messages"], "tools": [{"name": "look"}]}, "column 'messages', tools in column 'tools'"),
        (
            {**GOOD["messages"], "chat_template_kwargs": {"x": 1}},
            ", template arguments in column 'chat_template_kwargs'",
        ),
        ({"messages": [{**CHAT[0], "weight": 0}]}, ", messages marked by 'weight'"),
        ({"messages": [{**CHAT[0], "weight": 0.5}]}, "; not used: 'weight' of messages"),
    ],
)
def test_one_line_says_what_was_recognized(tmp_path: Path, row: Any, line: str | None) -> None:
    shown = line_of(corpus(write(tmp_path, row)))
    assert line in shown if shown and line else shown == line
    assert shown is None or ("\n" not in shown and len(shown.split("; not used")[0]) < 120)


@pytest.mark.bad_input
@pytest.mark.parametrize("write_rows", ["jsonl", "parquet"])
def test_what_is_not_recognized_is_refused_with_the_setting_to_write(tmp_path: Path, write_rows: str) -> None:
    rows = [{"id": 7, "title": "T", "content": "A long story", "meta": {"lang": "en"}, "tags": ["a"]}] * 150
    path = write(tmp_path, *rows)
    if write_rows == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path := tmp_path / "a.parquet")
    with pytest.raises(UserError) as error:
        resolve_layout(corpus(path))
    assert f"{path} has no column 'text'; it has 'id' (number), 'title' (text), 'content' (text)," in str(error.value)
    assert "'meta' (mapping of lang), 'tags' (list of text)" in str(error.value)
    assert "--set corpus.text=content (or 'title')" in str(error.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chat": TURNS}, r"--set corpus\.messages=chat"),
        ({"id": 1}, r"Set corpus\.text to a column of texts"),
        ({}, r"it has none\. Set corpus\.text"),
        ({"messages": "not a list"}, r"--set corpus\.text=messages"),
        ({"prompt": "x"}, r"--set corpus\.text=prompt"),
        (PREFERENCE, r"preferences.*--set corpus\.messages=chosen"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, r"preferences.*--set corpus\.text='\{prompt\}\{chosen\}'"),
        ({"chosen": "y", "rejected": "z"}, r"--set corpus\.text='chosen'"),
        (
            {"prompt": "x", "completion": "y", "label": True},
            r"labeled true and false.*corpus\.layout=prompt_completion",
        ),
    ],
)
def test_other_rows_are_refused_in_a_sentence(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_layout(corpus(write(tmp_path, row)))


@pytest.mark.bad_input
def test_a_misspelled_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no column 'boddy'; it has 'body'\. Was 'body' meant\?"):
        read(corpus(write(tmp_path, {"body": "x"}), text="boddy"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "text", "messages": "m"},
        {"layout": "alpaca", "messages": "m"},
        {"layout": "prompt_completion", "messages": "m"},
        {"layout": "messages", "text": "m"},
        {"layout": "sharegpt", "text": "{a}"},
        {"layout": "share_gpt"},
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: Any) -> None:
    with pytest.raises(ValidationError, match="layout"):
        corpus("a.jsonl", **settings)


CONTENT = [{"conversations": TURNS}, {"conversations": [{"from": "system", "value": "Be brief."}, *TURNS]}]


def saved(folder: Path) -> Path:
    datasets.Dataset.from_list(CONTENT).save_to_disk(folder)
    return folder


def parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(CONTENT), path)
    return path


def bytes_of(data: bytes) -> Callable[[Path], Path]:
    def write_bytes(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write_bytes


CARRIERS: dict[str, Callable[[Path], Path]] = {
    "a.jsonl": bytes_of(jsonl(*CONTENT)),
    "a.json": bytes_of(json.dumps(CONTENT, indent=1).encode()),
    "a.jsonl.zst": bytes_of(zstandard.compress(jsonl(*CONTENT))),
    "a.arrow": bytes_of(arrow_stream(CONTENT)),
    "a.parquet": parquet,
    "saved": saved,
}


@pytest.mark.parametrize("name", CARRIERS)
def test_sharegpt_is_the_same_from_every_carrier(tmp_path: Path, name: str) -> None:
    path = CARRIERS[name](tmp_path / name)
    configs = [corpus(path)]
    if name == "saved":
        configs.append(corpus_of(HubSource(name=str(path))))
    for config in configs:
        documents, dropped = read(config)
        assert [document.messages for document in documents] == [
            CHAT,
            [{"role": "system", "content": "Be brief."}, *CHAT],
        ]
        assert not dropped


def test_a_folder_that_datasets_reads_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text("# A set\n")
    write(tmp_path / "set", *CONTENT)
    documents, dropped = read(corpus_of(HubSource(name=str(tmp_path / "set"))))
    assert next(document.messages for document in documents) == CHAT
    assert not dropped


def unreadable(*_: Any) -> Any:
    raise UserError("the Hub is down")


@pytest.mark.bad_input
def test_what_cannot_be_read_is_left_to_the_stage_that_reads_all(tmp_path: Path) -> None:
    source = OpenSource("datasets", list, unreadable, HashedFiles(()))
    for config in (corpus_of(HubSource(name="some/set")), corpus(tmp_path / "a.jsonl")):
        assert layouts.resolve_layout(config, source).layout == "text"


@pytest.mark.bad_input
@pytest.mark.parametrize("layout", ["messages", "sharegpt", "alpaca"])
def test_models_are_compared_on_texts_only(tmp_path: Path, layout: str) -> None:
    with pytest.raises(UserError, match=f"corpus.layout {layout}: models are compared on texts"):
        compare_models([], [corpus(write(tmp_path, GOOD[layout]))])
