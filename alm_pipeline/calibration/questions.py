"""Multiple-choice questions from files, and the dataset that they are stored as.

A question is an id, a prompt, the texts that may follow the prompt (each with what stands between the prompt and it),
the index of the right one, and the cluster that it belongs to. Questions that say the same are one dataset, wherever
they were read from: its name is the hash of their content.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from alm_pipeline.calibration.report.settings import QuestionColumns
from alm_pipeline.config import FilesSource
from alm_pipeline.corpus.files.errors import RowDropped, columns_set_by
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from alm_pipeline.corpus.formats.values import check_unicode
from alm_pipeline.corpus.sources import open_source
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.printed.secrets import masked
from storage.schemas import Kind

STAGE_VERSION = 1
QUESTIONS_PER_SHARD = 1000
_LEAST_CHOICES = 2
_EQUAL_CHOICES = "equal_choices"


class Question(NamedTuple):
    """A multiple-choice question."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    """at least two, with what stands between the prompt and a choice"""
    answer: int
    """the index of the right choice"""
    cluster: str


class Questions(NamedTuple):
    """The questions of a source, and how many were left out, by reason."""

    questions: list[Question]
    dropped: Mapping[str, int]


def read_questions(url: str, columns: QuestionColumns | None = None) -> Questions:
    """Read questions from Parquet, Arrow, JSON, CSV or TSV files.

    Raises UserError naming the row and the field that is wrong, or if two rows have one id. Rows that can't be read at
    all are counted by reason, as those of a corpus are, and questions with two equal choices as `equal_choices`.

    An answer such as "1", of which CSV has no other form, may be the index 1 or the choice "1": what the other rows'
    answers are decides. Raises UserError if they leave it open.
    """
    columns = columns or QuestionColumns()
    source = open_source(FilesSource(urls=(url,)))
    required = (columns.prompt, columns.choices, columns.answer)
    dropped: Counter[str] = Counter()
    with columns_set_by("Set --prompt, --choices or --answer (a flow's parameters of these names) to one of these."):
        rows = list(source.rows(Columns(required, (columns.cluster, columns.id)), dropped))
    source.check(final=True)
    if rows and columns.cluster != QuestionColumns.cluster and not any(columns.cluster in row for _, row in rows):
        raise UserError(f"{masked(url)}: cluster: no row has a column {columns.cluster!r}: name another, or none")
    are_texts, questions = _are_texts(rows, columns), []
    for name, row in rows:
        try:
            questions.append(_question(name, row, columns, are_texts))
        except RowDropped as drop:
            drop.count_in(dropped)
    return checked_questions(questions, dropped, masked(url))


def checked_questions(questions: Sequence[Question], dropped: Mapping[str, int], source: str) -> Questions:
    """Return the questions whose choices differ. Raises UserError if there are none, or if two have one id."""
    counts = Counter(dropped)
    distinct = [question for question in questions if len(set(question.choices)) == len(question.choices)]
    counts[_EQUAL_CHOICES] += len(questions) - len(distinct)
    ids = Counter(question.id for question in distinct)
    if repeated := [id_ for id_, count in ids.items() if count > 1]:
        raise UserError(f"{source}: {ids[repeated[0]]} questions have the id {repeated[0]!r}: give each its own id")
    if not distinct:
        raise UserError(f"{source}: contains no questions (left out: {dict(+counts) or 'none'})")
    return Questions(distinct, dict(sorted((+counts).items())))


def _question(name: str, row: SourceRow, columns: QuestionColumns, are_texts: bool | None) -> Question:
    def wrong(field: str, what: str) -> UserError:
        return UserError(f"{name}: {field} {what}")

    prompt, choices = row.get(columns.prompt), _listed(row.get(columns.choices))
    if not isinstance(prompt, str):
        raise wrong(columns.prompt, f"is {_kind(prompt)}: write the text before the choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise wrong(columns.choices, f"is {_kind(choices)}: write a list of texts")
    if len(choices) < _LEAST_CHOICES:
        raise wrong(columns.choices, f"has {len(choices)} choices: a question has at least {_LEAST_CHOICES}")
    if empty := [number for number, choice in enumerate(choices) if not choice.strip()]:
        raise wrong(columns.choices, f"has an empty text at index {empty[0]}: write the choice")
    as_text, as_index = _readings(row.get(columns.answer), choices)
    if are_texts is None and None not in (as_text, as_index) and as_text != as_index:
        raise wrong(
            columns.answer,
            f"is {row[columns.answer]!r}: that is the text of a choice and the index of another, and no other row's "
            "answer shows which one it is: write indexes as numbers, in JSON lines or Parquet",
        )
    answer = as_index if as_text is None or (as_index is not None and not are_texts) else as_text
    if answer is None:
        raise wrong(
            columns.answer,
            f"is {row.get(columns.answer)!r}: write the index of the right choice, from 0 to {len(choices) - 1}, or "
            "its text",
        )
    id_, cluster = row.get(columns.id), row.get(columns.cluster)
    id_ = name if id_ is None else str(id_)
    texts = tuple(columns.delimiter + choice for choice in choices)
    for text in (prompt, *texts, id_, str(cluster)):
        check_unicode(text)
    return Question(id_, prompt, texts, answer, id_ if cluster is None else str(cluster))


def _listed(value: Any) -> Any:
    """Return a list, which CSV files hold as JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return list(value) if isinstance(value, tuple) else value


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"a list with {next((repr(item) for item in value if not isinstance(item, str)), 'texts')}"
    return "missing" if value is None else f"{value!r:.80}"


def _are_texts(rows: Sequence[tuple[str, SourceRow]], columns: QuestionColumns) -> bool | None:
    """Return whether answers that can be read in both ways are texts; None if the other answers don't tell."""
    readings = [_readings(row.get(columns.answer), _listed(row.get(columns.choices))) for _, row in rows]
    has_texts = any(text is not None and index is None for text, index in readings)
    has_indexes = any(index is not None and text is None for text, index in readings)
    return has_texts if has_texts != has_indexes else None


def _readings(value: Any, choices: Any) -> tuple[int | None, int | None]:
    """Return the index of the choice that an answer is the text of, and the one that it is itself, if it is one."""
    if not isinstance(choices, list) or isinstance(value, bool):
        return None, None
    text = choices.index(value) if isinstance(value, str) and value in choices else None
    index = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    return text, index if isinstance(index, int) and 0 <= index < len(choices) else None


def questions_dataset(root: str, source: str, questions: Sequence[Question]) -> Dataset:
    """Return the dataset of these questions, whether or not it is written yet; `source` is where they are from."""
    return asked_dataset(root, Kind.QUESTIONS, source, questions, STAGE_VERSION, QUESTIONS_PER_SHARD)


def asked_dataset(
    root: str, kind: Kind, source: str, rows: Sequence[Sequence[Any]], stage_version: int, per_shard: int
) -> Dataset:
    """Return the dataset of what models are asked, which is named by its rows' content."""
    content = json.dumps([list(row) for row in rows], ensure_ascii=False).encode(errors="surrogatepass")
    identity = {
        "stage_version": stage_version,
        "content": hashlib.sha256(content).hexdigest(),
        f"{kind}_per_shard": per_shard,
    }
    provenance = {"configuration": {str(kind): masked(source)}}
    return Dataset(root, kind, _label(source), identity, provenance=provenance)


def _label(source: str) -> str:
    name = PurePosixPath(masked(source)).name.split(".")[0]
    label = "".join(character if character.isalnum() and character.isascii() else "-" for character in name)
    return label.strip("-")[:40] or "questions"


def store_questions(dataset: Dataset, questions: Questions) -> Manifest:
    """Write every shard that is not written yet, and return the manifest."""
    if manifest := dataset.manifest():
        return manifest
    shards = list(_shards(questions.questions))
    with dataset.being_written():
        for shard in dataset.missing(range(len(shards))):
            columns = zip(*shards[shard], strict=True)
            named = dict(zip(Question._fields, map(list, columns), strict=True))
            dataset.write_shard(shard, named, counts={"choices": sum(map(len, named["choices"]))})
        return dataset.finish(len(shards), questions.dropped)


def _shards(questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), QUESTIONS_PER_SHARD):
        yield questions[start : start + QUESTIONS_PER_SHARD]


def stored_questions(dataset: Dataset, shard: int) -> list[Question]:
    """Read a shard of stored questions."""
    rows = dataset.read_shard(shard).to_pylist()
    return [Question(**{**row, "choices": tuple(row["choices"])}) for row in rows]
