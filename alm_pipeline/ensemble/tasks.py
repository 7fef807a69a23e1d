"""Access to lm-evaluation-harness, which is an optional dependency, and the identity of a user's own tasks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from storage.errors import UserError
from storage.fingerprints import hash_file


def lm_eval_harness() -> Any:
    """Return the module `harness`. Raises UserError if lm_eval is not installed."""
    try:
        from alm_pipeline.ensemble import harness
    except ModuleNotFoundError as error:
        raise UserError(f"tasks of lm_eval need {error.name}: pip install 'alm-pipeline[eval]'") from error
    return harness


def task_files(folder: Path | None) -> dict[str, str]:
    """Return the hashes of what decides a folder's own tasks: its files, by their paths in it, and their local data.

    Data is what a task's `dataset_path` and `dataset_kwargs` name on this machine, wherever it is.
    """
    if folder is None:
        return {}
    files = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    found = {name: hash_file(file) for name, file in files.items()}
    for name, file in files.items():
        data = _data_files(file) if file.suffix in (".yaml", ".yml") else ()
        outside = [each for each in data if folder.absolute() not in each.absolute().parents]
        found.update({f"{name}: data {number}": hash_file(each) for number, each in enumerate(outside)})
    return found


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]


class _TaskLoader(yaml.SafeLoader):
    """Reads lm_eval's YAML; values with tags of its own, such as `!function`, become None."""


_TaskLoader.add_multi_constructor("!", lambda *_: None)


def _data_files(task: Path) -> Iterator[Path]:
    try:
        content = yaml.load(task.read_text(encoding="utf-8"), _TaskLoader)
    except (UnicodeDecodeError, yaml.YAMLError):
        return  # lm_eval says what is wrong with it
    if isinstance(content, dict):
        for text in _texts([content.get("dataset_path"), content.get("dataset_kwargs")]):
            if "/" in text or "." in text:  # others are builders of `datasets`, such as json
                for path in _named(Path(text)):
                    yield from _files(path)


def _named(path: Path) -> list[Path]:
    """Return the path, or what it names if it is a pattern."""
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if "*" in str(path) else [path]


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
