"""Questions from files and tasks: what is read, what is refused by row and field, and how they are stored."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from alm_pipeline.calibration.calibrate import QuestionSource
from alm_pipeline.calibration.questions import (
    QUESTIONS_PER_SHARD,
    Question,
    Questions,
    questions_dataset,
    read_questions,
    store_questions,
    stored_questions,
)
from alm_pipeline.calibration.report.settings import QuestionColumns
from alm_pipeline.calibration.task_questions import task_questions
from storage.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "1 + 1 =", "choices": ["2", "3"], "answer": 0, "cluster": "sums"},
    {"id": "b", "prompt": "2 + 1 =", "choices": ["2", "3", "é"], "answer": "3", "cluster": "sums"},
]
READ = [
    Question("a", "1 + 1 =", (" 2", " 3"), 0, "sums"),
    Question("b", "2 + 1 =", (" 2", " 3", " é"), 1, "sums"),
]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    match file.suffix:
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            pl.DataFrame([{**row, "answer": str(row["answer"])} for row in rows]).write_parquet(file)
        case _:
            lines = [{**row, "choices": json.dumps(row["choices"])} for row in rows]
            pl.DataFrame([{**row, "answer": str(row["answer"])} for row in lines]).write_csv(file)
    return str(file)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_the_same_questions_from_any_file(tmp_path: Path, ending: str) -> None:
    found = read_questions(write(tmp_path / f"questions.{ending}", ROWS))
    assert found.questions == READ
    assert found.dropped == {}


def test_columns_have_the_names_that_are_chosen_and_the_rest_is_made(tmp_path: Path) -> None:
    rows = [{"q": row["prompt"], "options": row["choices"], "label": row["answer"]} for row in ROWS]
    columns = QuestionColumns(prompt="q", choices="options", answer="label", delimiter="\n")
    first, second = read_questions(write(tmp_path / "mine.jsonl", rows), columns).questions
    assert first == Question("mine.jsonl:0", "1 + 1 =", ("\n2", "\n3"), 0, "mine.jsonl:0")
    assert (second.id, second.cluster, second.answer) == ("mine.jsonl:1", "mine.jsonl:1", 1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, r"q\.jsonl:1: prompt is missing: write the text before the choices"),
    "a number": ({"prompt": 7}, r"q\.jsonl:1: prompt is 7: write the text"),
    "no list": ({"choices": "2, 3"}, r"q\.jsonl:1: choices is '2, 3': write a list of texts"),
    "numbers": ({"choices": [2, 3]}, r"q\.jsonl:1: choices is a list with 2: write a list of texts"),
    "one choice": ({"choices": ["2"]}, r"q\.jsonl:1: choices has 1 choices: a question has at least 2"),
    "empty choice": ({"choices": ["2", " "]}, r"q\.jsonl:1: choices has an empty text at index 1"),
    "too high": ({"answer": 2, "choices": ["2", "3"]}, r"q\.jsonl:1: answer is 2: write the index .* from 0 to 1, or"),
    "negative": ({"answer": -1}, r"q\.jsonl:1: answer is -1: write the index"),
    "another text": ({"answer": "4"}, r"q\.jsonl:1: answer is '4': write the index"),
    "true": ({"answer": True}, r"q\.jsonl:1: answer is True: write the index"),
    "the same id": ({"id": "a"}, r"q\.jsonl: 2 questions have the id 'a': give each its own id"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_by_row_and_field(tmp_path: Path, what: str) -> None:
    changed, message = WRONG[what]
    with pytest.raises(UserError, match=message):
        read_questions(write(tmp_path / "q.jsonl", [ROWS[0], {**ROWS[1], **changed}]))


PICKED = ["0", "1", "2"]
ANSWERS: dict[str, tuple[list[tuple[list[str], str]], list[int]]] = {
    "others are indexes": ([(["1", "2"], "1"), (["5", "6"], "0")], [1, 0]),
    "others are texts": ([(["1", "2"], "1"), (["5", "6"], "6")], [0, 1]),
    "both are the same": ([(PICKED, "1"), (["5", "6"], "0"), (["5", "6"], "6")], [1, 0, 1]),
}


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("what", ANSWERS)
def test_the_other_answers_tell_whether_one_is_a_text_or_an_index(tmp_path: Path, ending: str, what: str) -> None:
    rows, expected = ANSWERS[what]
    file = write(
        tmp_path / f"q.{ending}",
        [{"prompt": "?", "choices": choices, "answer": answer} for choices, answer in rows],
    )
    assert [question.answer for question in read_questions(file).questions] == expected


@pytest.mark.bad_input
@pytest.mark.parametrize("others", [[], [(["5", "6"], "0"), (["5", "6"], "6")]], ids=["none", "both kinds"])
def test_an_answer_that_may_be_a_text_or_an_index_is_refused(tmp_path: Path, others: list[Any]) -> None:
    rows = [{"prompt": "?", "choices": choices, "answer": answer} for choices, answer in [(["1", "2"], "1"), *others]]
    with pytest.raises(UserError, match=r"q\.csv:0: answer is '1': that is the text of a choice and the index of ano"):
        read_questions(write(tmp_path / "q.csv", rows))
    numbers = [{**row, "answer": row["choices"].index(row["answer"]) if row["answer"] != "0" else 0} for row in rows]
    assert read_questions(write(tmp_path / "q.jsonl", numbers)).questions[0].answer == 0


@pytest.mark.bad_input
@pytest.mark.parametrize("column", ["prompt", "choices", "answer", "cluster"])
def test_a_column_that_no_row_has_is_named_by_its_option(tmp_path: Path, column: str) -> None:
    """Also the optional one: without it, the intervals would be those of independent questions."""
    file = write(tmp_path / "q.jsonl", ROWS)
    with pytest.raises(UserError, match=rf"q\.jsonl.*no (row has a )?column 'nope'.*|--{column}"):
        read_questions(file, QuestionColumns(**{column: "nope"}))


@pytest.mark.bad_input
@pytest.mark.parametrize("changed", [{"prompt": "h\xf6?"}, {"choices": ["h\xf6", "x"]}], ids=["prompt", "choices"])
def test_rows_that_are_not_utf8_are_counted(tmp_path: Path, changed: dict[str, Any]) -> None:
    file = Path(write(tmp_path / "q.csv", [{**ROWS[0], **changed}, ROWS[1]]))
    file.write_bytes(file.read_text().replace("\\u00f6", "\xf6").encode("latin-1"))
    found = read_questions(str(file))
    assert [question.id for question in found.questions] == ["b"]
    assert found.dropped == {"invalid_utf8": 1}


@pytest.mark.bad_input
def test_what_is_left_out_is_counted_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    equal = {**ROWS[0], "id": "c", "choices": ["2", "2"]}
    file = Path(write(tmp_path / "q.jsonl", [*ROWS, equal]))
    file.write_text(file.read_text() + "{not json\n")
    found = read_questions(str(file))
    assert found.questions == READ
    assert found.dropped == {"equal_choices": 1, "invalid_json": 1}
    with pytest.raises(UserError, match=r"only\.jsonl: contains no questions \(left out: \{'equal_choices': 1\}\)"):
        read_questions(write(tmp_path / "only.jsonl", [equal]))
    with pytest.raises(UserError, match="label"):
        read_questions(str(file), QuestionColumns(answer="label"))


def test_a_dataset_is_named_by_its_content_and_holds_it(tmp_path: Path) -> None:
    many = [READ[0]._replace(id=str(number)) for number in range(QUESTIONS_PER_SHARD + 1)]
    first = questions_dataset(str(tmp_path), "s3://bucket/a.jsonl", many)
    manifest = store_questions(first, Questions(many, {"equal_choices": 2}))
    assert [record.rows for record in manifest.shards] == [QUESTIONS_PER_SHARD, 1]
    assert manifest.dropped == {"equal_choices": 2}
    assert [question for shard in range(2) for question in stored_questions(first, shard)] == many
    assert questions_dataset(str(tmp_path), "b/a.parquet", many).name == first.name
    assert questions_dataset(str(tmp_path), "b/a.parquet", many[:-1]).name != first.name


TASK = """task: foxes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{prompt}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: {target}
metric_list: [{{metric: acc}}, {{metric: acc_mutual_info}}]
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": row["prompt"], "choices": row["choices"], "answer": number} for number, row in enumerate(ROWS)]
    rows.append({"prompt": "?", "choices": ["x", "y"], "answer": 5})
    (tmp_path / "tasks").mkdir()
    file = write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "tasks" / "foxes.yaml").write_text(TASK.format(file=file, target="answer"))
    return tmp_path / "tasks"


def test_a_task_has_the_prompts_and_choices_that_lm_eval_scores(task: Path) -> None:
    found = QuestionSource("foxes", task_folder=task).read()
    assert found.questions == [
        Question("foxes:0", "Q: 1 + 1 =\nA:", (" 2", " 3"), 0, "foxes:0"),
        Question("foxes:1", "Q: 2 + 1 =\nA:", (" 2", " 3", " é"), 1, "foxes:1"),
    ]
    assert found.dropped == {"no_single_answer": 1}
    assert [question.id for question in task_questions("foxes", task, limit=1).questions] == ["foxes:0"]


@pytest.mark.bad_input
def test_tasks_of_another_kind_and_names_of_nothing_are_refused(task: Path) -> None:
    other = (task / "foxes.yaml").read_text().replace("multiple_choice", "generate_until").replace("foxes", "wolves")
    (task / "wolves.yaml").write_text(other.replace("[{metric: acc}, {metric: acc_mutual_info}]", "[]"))
    with pytest.raises(UserError, match="--questions wolves: is a task of generate_until: name one of multiple_choice"):
        task_questions("wolves", task)
