"""A run whose student's template leaves out a role: every place that reports on the run shows it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from alm_pipeline.config import AlmConfig
from alm_pipeline.inspection.frame import chunk_frame
from alm_pipeline.inspection.head import head
from alm_pipeline.inspection.page import page
from alm_pipeline.inspection.picture import picture
from alm_pipeline.inspection.summary import summarize_alignments
from alm_pipeline.inspection.tables import tables
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.estimate import make_plan
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.report import summarize, summary_rows
from storage.errors import UserError

COUNT = 40
WITHOUT_DEVELOPER = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{% if m['role'] != 'developer' %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
)


def chat(k: int) -> list[dict[str, str]]:
    developer = [{"role": "developer", "content": "Answer in French."}] if k % 2 else []
    tool = [{"role": "tool", "content": "38"}] if k == 0 else []
    question = {"role": "user", "content": f"How many legs have {k} spiders?" + " " * (k == 2)}
    return [*developer, question, *tool, {"role": "assistant", "content": f"Huit fois {k}."}]


def with_template(name: str, folder: Path, template: str) -> str:
    copy = Path(shutil.copytree(name, folder / "model"))
    (copy / "chat_template.jinja").write_text(template)
    return str(copy)


@pytest.fixture(scope="module")
def chats(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> AlmConfig:
    folder = tmp_path_factory.mktemp("one_sided")
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat(k)}) for k in range(COUNT)))
    settings = {
        "student.model": with_template(config.student.model, folder, WITHOUT_DEVELOPER),
        "corpus.source.urls": [str(folder / "chats.jsonl")],
        "corpus.messages": "messages",
        "corpus.max_bytes": 10_000,
        "corpus.held_out": 0.5,
        "corpus.shard_bytes": 1024,
        "train.steps": 1,
    }
    return override(config, Overrides(settings=settings))


def changed(chats: AlmConfig, settings: dict[str, Any]) -> AlmConfig:
    return override(chats, Overrides(settings=settings))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def pipeline(chats: AlmConfig, root: str) -> Pipeline:
    made = Pipeline(chats, root)
    made.run()
    return made


DEVELOPER = COUNT // 2 * len("Answer in French.")


def test_the_table_of_a_run(pipeline: Pipeline) -> None:
    summary = summarize(pipeline)
    rows = dict(summary_rows(summary, {}))
    share = f"{DEVELOPER / summary.text_bytes:.2%}"
    assert rows["only the teacher sees"] == f"{share} of the bytes: developer {share}"
    assert re.fullmatch(r"0\.\d\d% of the bytes: parts of user 0\.\d\d%", rows["only the student sees"])
    assert float(rows["bytes aligned"].removesuffix("%")) < 100 - 100 * DEVELOPER / summary.text_bytes
    assert summary.byte_counts["teacher_only_bytes.developer"] == DEVELOPER
    assert rows["left out, alignments: student: template_refuses"] == "1"


def test_the_counts_add_up_to_the_texts(pipeline: Pipeline) -> None:
    counts, dropped = pipeline.alignments.complete_manifest().counts, chat(0)
    kinds = ("aligned", "uncompared", "teacher_only", "student_only", "unseen")
    total = sum(counts[f"{kind}_bytes"] for kind in kinds)
    left_out = sum(len(message["content"]) for message in dropped)
    assert total == pipeline.examples.complete_manifest().counts["text_bytes"] - left_out
    for kind in kinds:
        of_roles = (size for name, size in counts.items() if name.startswith(f"{kind}_bytes."))
        assert sum(of_roles) == counts[f"{kind}_bytes"]
    assert counts["teacher_only_sections.developer"] == COUNT // 2


def test_the_model_card(pipeline: Pipeline) -> None:
    card = (Path(pipeline.student.url) / "README.md").read_text()
    assert "| only the teacher sees |" in card


def test_the_picture_shows_whose_a_stretch_is(pipeline: Pipeline) -> None:
    ids = pipeline.alignments.read_shard(0, ["id"])["id"].to_pylist()
    shown = picture(pipeline.alignments.url, ids[1])
    (hidden,) = [chunk for chunk in shown.chunks if chunk.style == "seen_by_teacher"]
    assert (hidden.text.label, hidden.tokens["student"]) == ("Answer␣in␣French.", [])
    assert "17 of them only the teacher sees" in hidden.text.note
    assert "17 only the teacher sees" in shown.facts
    assert shown.legend["seen_by_teacher"] == "only the teacher sees it"
    assert 'class="chunk seen_by_teacher"' in page(shown)
    seen = chunk_frame(pipeline.alignments.url, 0, ids[1]).filter(pl.col("seen_by") == "teacher")
    assert seen["text"].to_list() == ["Answer in French."]


def test_the_summary_of_a_dataset(pipeline: Pipeline) -> None:
    summary = summarize_alignments(pipeline.alignments.url)
    rows = {(seen, role): size for seen, role, size, _, _ in summary.visibility.iter_rows()}
    assert rows["teacher_only", "developer"] == DEVELOPER
    printed = {title: lines for title, _, lines in tables(summary)}
    assert ["only the teacher", "developer", f"{DEVELOPER:,}"] in [row[:3] for row in printed["who sees the bytes"]]
    assert ["alignments", "student: template_refuses"] in [row[:2] for row in printed["dropped examples"]]
    document = head(pipeline.alignments.url, 1).document()
    (dropped,) = document["dropped"]
    assert (dropped["reason"], dropped["meaning"]) == (
        "student: template_refuses",
        "the chat template refuses the conversation",
    )


def test_a_plan_says_it_too(chats: AlmConfig, tmp_path: Path) -> None:
    for one_sided in ("keep", "refuse", "drop"):
        plan = make_plan(Pipeline(changed(chats, {"corpus.one_sided": one_sided}), str(tmp_path)))
        notes = " ".join(plan.notes)
        left_out = f"{COUNT // 2 + 1} of {COUNT} examples are left out"
        expected = left_out if one_sided == "drop" else "only the teacher sees"
        assert expected in notes


def test_dropping_keeps_tokens_and_scores(chats: AlmConfig, root: str, pipeline: Pipeline) -> None:
    other = Pipeline(changed(chats, {"corpus.one_sided": "drop"}), root)
    same = ("examples", "teacher_tokens", "student_tokens", "scores")
    assert [other.caches[role].name for role in same] == [pipeline.caches[role].name for role in same]
    assert other.alignments.name != pipeline.alignments.name
    other._prepare()
    manifest = other.alignments.complete_manifest()
    assert manifest.dropped["one_sided_bytes"] == COUNT // 2 + 1  # and the one that a template trims
    assert manifest.counts["teacher_only_bytes"] == manifest.counts["student_only_bytes"] == 0
    reasons = {row["dropped"] for row in head(other.alignments.url, COUNT, only_dropped=True).rows}
    assert reasons == {"one_sided_bytes", "student: template_refuses"}
    assert other.student.name != pipeline.student.name


def test_what_is_learned_keeps_tokens_and_scores(chats: AlmConfig, root: str, pipeline: Pipeline) -> None:
    settings = {"objective.learn": ["answer"], "objective.learned_turns": "last", "objective.assistant_only": True}
    other = Pipeline(changed(chats, settings), root)
    assert other.scores.name == pipeline.scores.name
    assert other.alignments.name != pipeline.alignments.name
    swapped = changed(chats, {"objective.learn": ["reasoning", "answer", "tool_calls"]})
    assert Pipeline(swapped, root).alignments.name == pipeline.alignments.name


@pytest.mark.bad_input
def test_refusing_stops_before_scoring(chats: AlmConfig, tmp_path: Path) -> None:
    refusing = Pipeline(changed(chats, {"corpus.one_sided": "refuse"}), str(tmp_path))
    with pytest.raises(UserError, match=r"only the teacher sees .*developer"):
        refusing.run()
    assert list(tmp_path.iterdir()) == []
    refusing.shard()
    refusing.tokenize("teacher")
    refusing.tokenize("student")
    with pytest.raises(UserError, match="only the teacher's tokens show 17 bytes of the role developer"):
        refusing.align()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("parts", "problem"), [([], "nothing would be learned"), (["answers"], "answers"), (None, "learn"), ([1], "learn")]
)
def test_parts_that_are_none_are_refused(chats: AlmConfig, parts: object, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        changed(chats, {"objective.learn": parts})


def test_one_part_needs_no_list(chats: AlmConfig) -> None:
    assert changed(chats, {"objective.learn": "answer"}).objective.learn == ("answer",)


@pytest.mark.bad_input
def test_nothing_to_learn_is_known_before_the_teacher_scores(chats: AlmConfig, tmp_path: Path) -> None:
    settings = {"objective.learn": ["reasoning"], "objective.assistant_only": True}
    pipeline = Pipeline(changed(chats, settings), str(tmp_path))
    pipeline._prepare()
    with pytest.raises(UserError, match="no example to train on"):
        pipeline.require_examples()


LOOK = [{"type": "function", "function": {"name": "look", "description": "the weather", "parameters": {}}}]


def test_arguments_that_one_side_does_not_read_are_in_the_table(chats: AlmConfig, tmp_path: Path) -> None:
    rows = [{"messages": chat(k)[-2:], **({"tools": LOOK} if k % 4 == 0 else {})} for k in range(1, COUNT)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"corpus.source.urls": [str(tmp_path / "chats.jsonl")], "teacher_template": "plain"}
    pipeline = Pipeline(changed(chats, settings), str(tmp_path / "store"))
    pipeline.cache()
    rows_shown = dict(summary_rows(summarize(pipeline, with_student=False), {}))
    assert rows_shown["not read by the student's template"] == f"tools of {COUNT // 4 - 1} conversations"
    assert "not read by the teacher's template" not in rows_shown
