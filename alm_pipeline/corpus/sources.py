"""Any source, opened: the identity of its content, its rows, and whether it is still what the identity covers."""

import difflib
import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, assert_never

from alm_pipeline.config import FilesSource, GeneratedSource, HubSource, Source, WrittenSource
from alm_pipeline.corpus.files.arrow_rows import without_filled_nulls
from alm_pipeline.corpus.files.errors import require_columns
from alm_pipeline.corpus.files.listing import list_files
from alm_pipeline.corpus.files.readers import read_files
from alm_pipeline.corpus.files.rows import Columns, SourceRow, without_nulls
from alm_pipeline.corpus.files.versions import HashedFiles
from alm_pipeline.corpus.source_identity import hub_commit, local_files, reasoning_gym_version, saved_folder
from alm_pipeline.corpus.written import read_written, written_examples
from storage.errors import UserError, user_error

# the last line of a worked solution in gsm_symbolic, as in GSM8K
_FINAL_ANSWER = re.compile(r"\s*#### .*\s*$")

Rows = Iterator[tuple[str, SourceRow]]


_contents: dict[str, Any] = {}
"""What identified the sources that this process has opened, by identity: to name the file that changed."""


@dataclass(frozen=True)
class OpenSource:
    """A source whose rows are those that `identity` names, as long as `check` passes.

    Nothing is hashed before `identity` is asked for; then `check` compares only what is read afterward.
    """

    kind: str
    content: Callable[[], list[Any]]
    """Returns what identifies the content, as JSON values; lists of files begin with their names."""
    read: Callable[[Columns, Counter[str]], Rows]
    files: HashedFiles
    """The files that are read; none for what can't change (a commit of the Hub, generated problems)."""

    @cached_property
    def identity(self) -> str:
        """A hex fingerprint of the content. Where it is stored is not part of it."""
        content = self.content()
        identity = hashlib.sha256(json.dumps([self.kind, content], sort_keys=True).encode()).hexdigest()
        _contents[identity] = content
        return identity

    def rows(self, columns: Columns | tuple[str, ...], dropped: Counter[str]) -> Rows:
        """Yield the rows with their ids, in an order that never changes; counts what has none in `dropped`.

        Ids are '<name>' or '<name>:<row>' for files, '<split>:<row>' for `datasets`, '<task>-<seed>:<i>' for generated
        problems. Raises UserError if the source cannot be read or lacks one of `columns` that it must
        have.
        """
        return self.read(columns if isinstance(columns, Columns) else Columns(columns), dropped)

    def require_identity(self, expected: str) -> None:
        """Raise UserError, naming what changed where this process can know it, if the content has another identity."""
        if self.identity != expected:
            changed = _changed_files(_contents.get(expected, []), _contents[self.identity])
            what = f" ({', '.join(changed[:5])})" if changed else ""
            raise UserError(
                f"the corpus's source has changed since the run began{what}; wait until nothing writes to it, and run "
                "the same command again"
            )

    def check(self, *, final: bool = False) -> None:
        """Raise UserError if a file that was read has changed since its content was hashed (see `HashedFiles`)."""
        self.files.check(final=final)


def _changed_files(then: list[Any], now: list[Any]) -> list[str]:
    """Return the names of the files that are in one of two contents only, or different in it."""
    both = [{str(file[0]): file for file in files if isinstance(file, list) and file} for files in (then, now)]
    return sorted(name for name in {**both[0], **both[1]} if both[0].get(name) != both[1].get(name))


def open_source(source: Source) -> OpenSource:
    """List what a source refers to. Raises UserError if that cannot be known.

    The identity covers, for files, their names (see `files`), formats and contents (for remote files the store's
    checksum, if it has one); for a Hub dataset, the commit, which is then read; for a local folder that `datasets`
    reads, its files; for generated problems, their settings and the generator's version; for what a model wrote, the
    name of the stored examples.
    """
    match source:
        case FilesSource():
            return _open_files(source)
        case HubSource():
            return _open_hub(source)
        case GeneratedSource():
            content = [source.task, source.size, source.seed, reasoning_gym_version()]
            return OpenSource(source.kind, lambda: content, partial(_read_generated, source), HashedFiles(()))
        case WrittenSource():
            name = written_examples(source).name
            return OpenSource(source.kind, lambda: [name], partial(read_written, source), HashedFiles(()))
        case _:
            assert_never(source)


def source_identity(source: Source) -> str:
    """Return the fingerprint of a source's content (see `open_source`)."""
    return open_source(source).identity


def _open_files(source: FilesSource) -> OpenSource:
    listing = list_files(source)
    hashed = HashedFiles(listing.files)

    def content() -> list[Any]:
        return [[file.name, file.format, [*hashed.content(file)]] for file in listing.files]

    return OpenSource(source.kind, content, partial(read_files, listing, hashed), hashed)


def _open_hub(source: HubSource) -> OpenSource:
    if folder := saved_folder(source):
        return _open_files(FilesSource(urls=(folder,)))
    files = local_files(source)
    if files is None:
        commit = hub_commit(source)
        pinned = source.model_copy(update={"revision": commit})
        content = [source.subset, source.split, source.name, commit]
        return OpenSource(source.kind, lambda: content, partial(_read_hub, pinned), HashedFiles(()))
    hashed = HashedFiles(tuple(files))

    def folder_content() -> list[Any]:
        return [source.subset, source.split, *([file.name, *hashed.content(file)] for file in files)]

    # streaming has no cache: that of `datasets` knows files by their time and size, and may answer with others
    streamed = source.model_copy(update={"streaming": True})
    return OpenSource(source.kind, folder_content, partial(_read_folder, streamed, hashed), hashed)


def _read_folder(source: HubSource, hashed: HashedFiles, columns: Columns, dropped: Counter[str]) -> Rows:
    with hashed.reading(*hashed.files):
        _require_hashed(source, hashed)
        yield from _read_hub(source, columns, dropped)


def _require_hashed(source: HubSource, hashed: HashedFiles) -> None:
    """Raise UserError if `datasets` reads files that are not hashed: a README.md may name files anywhere."""
    with user_error(f"`datasets` cannot read dataset {source.name!r}", "check its README.md and files"):
        files = _datasets().load_dataset_builder(source.name, source.subset).config.data_files or {}
    known = {os.path.realpath(file.path) for file in hashed.files}
    others = [path for paths in files.values() for path in paths if os.path.realpath(path) not in known]
    if others:
        raise UserError(
            f"the folder {source.name!r} has its rows in {others[0]}, as its README.md says, where a change would not "
            "be noticed; move that file into the folder, under a name without a dot, or read it with "
            "corpus.source.kind `files`"
        )


def _read_hub(source: HubSource, columns: Columns, dropped: Counter[str]) -> Rows:
    where = f"dataset {source.name!r}"
    with user_error(
        f"`datasets` cannot read {where} (split {source.split!r})",
        "check corpus.source's name, subset, split and revision, and the connection",
    ):
        rows = _load(source)
        # the columns of a streamed dataset may be unknown before its first row
        names = rows.column_names or list(next(iter(rows), {}))
        if names:
            require_columns(where, columns.required, names)
            rows = rows.select_columns(columns.among(names))
        for number, row in enumerate(rows):
            yield f"{source.split}:{number}", _without_filled_nulls(row, rows.features)


def _without_filled_nulls(row: SourceRow, features: Any) -> SourceRow:
    """Take off what Arrow, in which `datasets` holds every row, filled in; by its types where they are known."""
    if features is None:
        return {column: without_nulls(value) for column, value in row.items()}
    schema = features.arrow_schema
    return {column: without_filled_nulls(value, schema.field(column).type) for column, value in row.items()}


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"corpus.source needs {error.name}: pip install 'alm-pipeline[datasets]'") from error
    return datasets


def _load(source: HubSource) -> Any:
    return _datasets().load_dataset(
        source.name,
        source.subset,
        split=source.split,
        revision=source.revision,
        streaming=source.streaming,
    )


def _read_generated(source: GeneratedSource, columns: Columns, dropped: Counter[str]) -> Rows:
    require_columns(f"reasoning-gym's {source.task}", columns.required, ["question", "solution", "answer", "text"])
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
