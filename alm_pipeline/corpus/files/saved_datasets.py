"""Folders that `datasets` saved with `save_to_disk`: the Arrow files that hold a dataset's rows.

A dataset's folder has `state.json`, which names its files in order. A folder with `dataset_dict.json` has one such
folder per split.
"""

import json
from pathlib import PurePosixPath
from typing import Any

from storage.errors import UserError, user_error

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def saved_split(fs: Any, folder: str, split: str | None = None) -> str | None:
    """Return the folder with the rows of a saved dataset; None if the folder is not one.

    Raises UserError if it has several splits, and `split` names none of them.
    """
    splits = _read(fs, f"{folder}/{_SPLITS}", "splits")
    if splits is None:
        return folder if fs.exists(f"{folder}/{_STATE}") else None
    chosen = split if split in splits else splits[0] if len(splits) == 1 and split is None else None
    if chosen is None:
        wanted = "" if split is None else f", and none is {split!r}"
        raise UserError(
            f"{folder} was saved with several splits ({', '.join(map(repr, splits))}){wanted}; "
            f"name the folder of one, such as {folder}/{splits[0] if splits else 'train'}"
        )
    return saved_split(fs, f"{folder}/{chosen}") or _refuse_without_state(f"{folder}/{chosen}")


def _refuse_without_state(folder: str) -> str:
    raise UserError(f"{folder} has no {_STATE}, so it is not a whole dataset: save it again with save_to_disk")


def saved_files(fs: Any, folder: str) -> list[str]:
    """Return the files of a folder of `saved_split`. Raises UserError if its state names none, or one that is gone."""
    names = [entry.get("filename") for entry in _read(fs, f"{folder}/{_STATE}", "_data_files") or [] if entry]
    files = [f"{folder}/{name}" for name in names if isinstance(name, str) and PurePosixPath(name).name == name]
    if not names or len(files) < len(names):
        raise UserError(f"{folder}/{_STATE} names no files of rows: save the dataset again with save_to_disk")
    if missing := [file for file in files if not fs.exists(file)]:
        raise UserError(f"{missing[0]} is missing, which {_STATE} names: copy the whole folder, or save it again")
    return files


def _read(fs: Any, path: str, key: str) -> list[Any] | None:
    """Read a list from a JSON file; return None if the file does not exist."""
    if not fs.exists(path):
        return None
    with user_error(f"cannot read {path}", "save the dataset again with save_to_disk"):
        content = json.loads(fs.cat_file(path))
        value = content[key]
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} is not a list: save the dataset again with save_to_disk")
    return value
