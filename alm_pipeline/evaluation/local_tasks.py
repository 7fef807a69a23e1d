"""Writes tasks of lm_eval over local files, which need no hub: multiple choice, cloze, and generation of an answer."""

import ast
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, assert_never, get_args

import yaml

from storage.errors import UserError
from storage.printed.counts import counts_in_words

TaskKind = Literal["multiple_choice", "cloze", "gsm8k"]
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
_NAME = re.compile(r"\w[\w.-]*")
_SOLUTION = r"#### (\-?[0-9\.\,]+)"
_LOADERS = {".jsonl": "json", ".json": "json", ".gz": "json", ".csv": "csv", ".parquet": "parquet"}
COLUMNS: dict[TaskKind, tuple[str, ...]] = {
    "multiple_choice": ("question", "choices", "answer"),
    "cloze": ("text",),
    "gsm8k": ("question", "answer"),
}
"""The columns that the questions' file needs."""


def write_task(folder: Path, name: str, kind: TaskKind, questions: Path, few_shot: Path | None = None) -> Path:
    """Write the task's YAML file into a folder, which may have others; return it.

    Raises UserError if a file is missing, has an unknown ending, lacks a column or has a row that lm_eval would count
    as wrong whatever a model says, if the name can't be one of a task, or if the task is there already.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"name: {name!r} is not a task's: write letters, digits, hyphens, dots and underscores")
    for file in filter(None, (questions, few_shot)):
        _check(file, kind)
    target = folder / f"{name}.yaml"
    if target.exists():
        raise UserError(f"{target}: exists already, and is not overwritten: choose another name")
    files = {"test": str(questions.absolute())} | ({"train": str(few_shot.absolute())} if few_shot else {})
    content = {
        "task": name,
        "dataset_path": _LOADERS[questions.suffix],
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        **({"training_split": "train", "fewshot_split": "train"} if few_shot else {}),
        **_of_kind(kind),
        "metadata": {"version": 1.0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
    return target


def _check(file: Path, kind: TaskKind) -> None:
    from alm_pipeline.config import FilesSource
    from alm_pipeline.corpus.columns import column_kinds, first_rows
    from alm_pipeline.corpus.files.rows import Columns
    from alm_pipeline.corpus.sources import open_source

    if file.suffix not in _LOADERS:
        raise UserError(f"{file}: lm_eval can't read this kind of file: use {', '.join(_LOADERS)}")
    columns = column_kinds(first_rows(FilesSource(urls=(str(file),))))
    if missing := [column for column in COLUMNS[kind] if column not in columns]:
        raise UserError(
            f"{file}: has no column {', '.join(missing)}; a task {kind} needs {', '.join(COLUMNS[kind])}, and it has "
            f"{', '.join(columns)}: rename them"
        )
    dropped = Counter[str]()
    for id_, row in open_source(FilesSource(urls=(str(file),))).rows(Columns(COLUMNS[kind]), dropped):
        if wrong := _wrong(kind, row):
            raise UserError(f"{id_}: {wrong}")
    if dropped:
        raise UserError(f"{file}: has rows that lm_eval can't read ({counts_in_words(dropped)}): remove or fix them")


def _wrong(kind: TaskKind, row: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a row, if anything is."""
    match kind:
        case "multiple_choice":
            return _wrong_choice(row.get("choices"), row.get("answer"))
        case "cloze":
            before, _, last = str(row.get("text") or "").rpartition(" ")
            is_whole = before.strip() and last.strip()
            return None if is_whole else "text has no last word after others: lm_eval cuts a text at its last space"
        case "gsm8k":
            is_solved = re.search(_SOLUTION, str(row.get("answer")))
            return None if is_solved else f"answer is {row.get('answer')!r:.80}, without `#### NUMBER` at its end"
        case _:
            assert_never(kind)


def _wrong_choice(choices: Any, answer: Any) -> str | None:
    if isinstance(choices, str):  # as in CSV
        try:
            choices = ast.literal_eval(choices)
        except (ValueError, SyntaxError):
            return f"choices is {choices!r:.80}: write a list"
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) for each in choices):
        return f"choices is {choices!r:.80}: write a list of two texts or more"
    if not str(answer).isascii() or not str(answer).isdigit():
        return None if answer in choices else f"answer is {answer!r}: write the right choice's number, from 0"
    return None if int(answer) < len(choices) else f"answer is {answer}: numbers are from 0 to {len(choices) - 1}"


def _of_kind(kind: TaskKind) -> dict[str, Any]:
    """Return what makes a task of this kind. `acc_bytes` divides a choice's log-likelihood by its bytes."""
    match kind:
        case "multiple_choice":
            return {
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "{{answer}}",
                "target_delimiter": " ",
                "metric_list": [_mean("acc"), _mean("acc_bytes")],
            }
        case "cloze":  # the last word, as LAMBADA has it
            return {
                "output_type": "loglikelihood",
                "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
                "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
                "target_delimiter": "",
                "metric_list": [_mean("acc"), {"metric": "perplexity", "aggregation": "perplexity"}],
            }
        case "gsm8k":
            return {
                "output_type": "generate_until",
                "doc_to_text": "Question: {{question}}\nAnswer:",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False},
                "filter_list": [_filter("strict-match", _SOLUTION, 0), _last_number()],
                "metric_list": [
                    {
                        **_mean("exact_match"),
                        "ignore_case": True,
                        "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
                    }
                ],
            }
        case _:
            assert_never(kind)


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _last_number() -> dict[str, Any]:
    return _filter("flexible-extract", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)


def _filter(name: str, pattern: str, group: int) -> dict[str, Any]:
    regex = {"function": "regex", "group_select": group, "regex_pattern": pattern}
    return {"name": name, "filter": [regex, {"function": "take_first"}]}
