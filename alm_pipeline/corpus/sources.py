"""The rows of any source, with their ids."""

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, assert_never

from alm_pipeline.config import FilesSource, GeneratedSource, HubSource, Source
from alm_pipeline.corpus.errors import failing_as, require_columns
from alm_pipeline.corpus.files import SourceRow, read_files
from storage.errors import UserError

# the last line of a worked solution in gsm_symbolic, as in GSM8K
_FINAL_ANSWER = re.compile(r"\s*#### .*\s*$")


def read_rows(source: Source, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the source's rows with their ids, in an order that never changes.

    Ids are '<name>' or '<name>:<row>' for files, '<split>:<row>' for `datasets`, '<task>-<seed>:<i>' for generated
    problems. Raises UserError if the source cannot be read or lacks one of `columns`.
    """
    match source:
        case FilesSource():
            return read_files(source, columns, dropped)
        case HubSource():
            return _read_hub(source, columns)
        case GeneratedSource():
            return _read_generated(source, columns)
        case _:
            assert_never(source)


def _read_hub(source: HubSource, columns: tuple[str, ...]) -> Iterator[tuple[str, SourceRow]]:
    where = f"dataset {source.name!r}"
    with failing_as(
        f"`datasets` cannot read {where} (split {source.split!r})",
        "check corpus.source's name, subset, split and revision, and the connection",
    ):
        rows = _load(source)
        # the columns of a streamed dataset may be unknown before its first row
        names = rows.column_names or list(next(iter(rows), {}))
        if names:
            require_columns(where, columns, names)
            rows = rows.select_columns(list(columns))
        for number, row in enumerate(rows):
            yield f"{source.split}:{number}", row


def _load(source: HubSource) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"corpus.source needs {error.name}: pip install 'alm-pipeline[datasets]'") from error
    return datasets.load_dataset(
        source.name,
        source.subset,
        split=source.split,
        revision=source.revision,
        streaming=source.streaming,
    )


def _read_generated(source: GeneratedSource, columns: tuple[str, ...]) -> Iterator[tuple[str, SourceRow]]:
    require_columns(f"reasoning-gym's {source.task}", columns, ["question", "solution", "answer", "text"])
    for number, item in enumerate(_create_problems(source)):
        yield f"{source.task}-{source.seed}:{number}", _problem(item)


def _create_problems(source: GeneratedSource) -> Any:
    try:
        with warnings.catch_warnings():
            # one of its dependencies compares a literal with `is`
            warnings.simplefilter("ignore")
            import reasoning_gym
    except ImportError as error:
        raise UserError(
            f"corpus.source needs the package reasoning-gym ({error}): pip install 'alm-pipeline[demo]'"
        ) from error
    tasks = reasoning_gym.factory.DATASETS
    if source.task not in tasks:
        near = difflib.get_close_matches(source.task, tasks, n=3) or sorted(tasks)[:3]
        raise UserError(f"reasoning-gym has no task {source.task!r}; set corpus.source.task to another, such as {near}")
    return reasoning_gym.create_dataset(source.task, size=source.size, seed=source.seed)


def _problem(item: dict[str, Any]) -> SourceRow:
    """Return the columns of a problem; if the task has no worked solutions, `solution` is the answer."""
    question, answer = item["question"], item["answer"]
    worked = item["metadata"].get("answer_cot")
    if worked is None:
        return _problem_row(question, answer, answer, answer)
    solution = _FINAL_ANSWER.sub("", worked)
    return _problem_row(question, solution, answer, f"{solution}\nThe answer is {answer}.")


def _problem_row(question: str, solution: str, answer: str, response: str) -> SourceRow:
    text = f"{question}\n{response}"
    return {"question": question, "solution": solution, "answer": answer, "text": text}
