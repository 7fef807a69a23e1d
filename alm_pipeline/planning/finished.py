"""Runs that this machine has seen complete: asked for again, they are answered without loading a model or a library.

A record holds what the run's table shows, and what decided it: a hash of every file of the models and tokenizers, the
identity of the corpus, the manifests in the store, this program and the installed packages. All of it is computed anew
before a record is believed, so whatever has changed leads to an ordinary run, which finds out what that means. Without
the records, which are in this machine's cache folder, every run is an ordinary one.
"""

import os
import platform
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from alm_pipeline.config import BYTES, AlmConfig
from alm_pipeline.corpus.sources import source_identity
from alm_pipeline.models.files import SMALL_FILES, fetch_folder, is_on_hub
from alm_pipeline.report import RunSummary
from alm_pipeline.tokenization.engines.findings import Findings
from storage.errors import UserError
from storage.fingerprints import combine_hashes, fingerprint, hash_file, hash_files
from storage.folders import CHECKPOINTS, cache_folder, stored_folder
from storage.printed.secrets import masked
from storage.schemas import MANIFEST
from storage.urls import absolute_url, join_url, read_bytes

if TYPE_CHECKING:
    from alm_pipeline.pipeline import Pipeline

_QUESTION = "finished run"
_PROGRAM = ("alm_pipeline", "storage")
_MOST_FILES = 2000
"""of a model's folder: one with more files holds other things too, and hashing it could take longer than a run"""


class FinishedRun(BaseModel):
    """A run of which every stage was complete, and what that was known by."""

    summary: RunSummary
    inputs: dict[str, str]
    """hashes of what the configuration names"""
    stored: dict[str, str]
    """the SHA-256 of each manifest, by its folder's URL"""


def find_finished(config: AlmConfig, root: str, until: str) -> RunSummary | None:
    """Return the summary of a run if this machine has seen it complete, and nothing that decides it has changed.

    Returns None where that can't be known cheaply; the run itself is then the answer.
    """
    if not _is_recordable(config, root):
        return None
    finished = _findings().recall(_QUESTION, _subject(config, root, until), FinishedRun)
    if finished is None:
        return None
    try:
        is_same = _has_same_manifests(finished) and _inputs(config) == finished.inputs
    except (UserError, OSError):  # the run reports it, with what it was doing
        return None
    return finished.summary if is_same else None


def record_finished(pipeline: "Pipeline", summary: RunSummary, until: str) -> None:
    """Record a run that is complete, for `find_finished`. Does nothing if its inputs changed since it began."""
    config, root = pipeline.config, pipeline.root
    if not _is_recordable(config, root):
        return
    try:
        finished = FinishedRun(summary=summary, inputs=_inputs(config), stored=_manifests(_folders(pipeline, summary)))
        # afterward, so that the files that were just hashed are those that the run has used
        _check_unchanged(pipeline, with_student="student" in summary.places)
    except (UserError, OSError):
        return
    used = {_corpus_name(part.config, pipeline.config): part.examples.identity.get("source") for part in pipeline.parts}
    # what a model wrote has none: its name is that of what was read
    if all(source in (None, finished.inputs[name]) for name, source in used.items()):
        _findings().record(_QUESTION, _subject(config, root, until), finished)


def _is_recordable(config: AlmConfig, root: str) -> bool:
    # code of a model may come from other repositories, and a push to the hub is work; a record holds the root
    return not config.trust_remote_code and config.publish is None and masked(root) == root


def _findings() -> Findings:
    return Findings(cache_folder() / "findings", {"program": _program(), "packages": _packages()})


def _subject(config: AlmConfig, root: str, until: str) -> str:
    place = {"root": root, "absolute": absolute_url(root)}
    return fingerprint({"config": config.model_dump(mode="json"), **place, "until": until})


def _program() -> dict[str, str]:
    folder = Path(__file__).parents[2]
    return {package: hash_files(folder / package, ("**/*.py", "**/*.jinja")) for package in _PROGRAM}


def _packages() -> list[str]:
    """Return the installed packages with their versions, as the names of their folders."""
    folders = [Path(place) for place in dict.fromkeys(sys.path) if Path(place).is_dir()]
    names = {entry.name for folder in folders for entry in os.scandir(folder) if entry.name.endswith(".dist-info")}
    return [platform.python_version(), *sorted(names)]


def _inputs(config: AlmConfig) -> dict[str, str]:
    """Return a hash of everything that the configuration names, by its name."""
    named = {f"model {name}": _model_content(name) for name in sorted(_models(config))}
    sources = {_corpus_name(part, config): source_identity(part.texts.source) for part in config.parts}
    return {**sources, **named, **_templates(config)}


def _corpus_name(part: AlmConfig, config: AlmConfig) -> str:
    return f"corpus {part.corpus_name}" if config.is_mixture else "corpus"


def _templates(config: AlmConfig) -> dict[str, str]:
    """Return the hashes of files that are named as templates; other names are those of a model, or of this package."""
    settings = {"teacher_template": config.teacher_template, "student.template": config.student.template}
    settings |= {f"corpus.{source.name}.teacher_template": source.teacher_template for source in config.sources}
    if not any(settings.values()):
        return {}
    from alm_pipeline.tokenization.templates.choice import TemplateChoice  # imports jinja2

    choices = (TemplateChoice.of(*setting) for setting in settings.items())
    files = {choice.setting: choice.file_content() for choice in choices if choice and choice.template}
    return {name: sha256(content).hexdigest() for name, content in files.items() if content is not None}


def _models(config: AlmConfig) -> set[str]:
    student = config.student
    tokenizer = student.tokenizer if isinstance(student.tokenizer, str) and not student.is_byte_level else None
    assert tokenizer != BYTES
    return {name for name in (*config.teachers, student.model, tokenizer, student.donor) if name}


def _model_content(name: str) -> str:
    """Return what identifies all files of a model: a hub's commit, or the hash of every file, whoever reads it."""
    folder = fetch_folder(name, SMALL_FILES)
    if is_on_hub(name):
        return f"commit {folder.name}"
    files = sorted(_files(folder))
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(hash_file, files)
        return combine_hashes(dict(zip((str(file.relative_to(folder)) for file in files), hashes, strict=True)))


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder. Raises UserError if there are too many."""
    files: list[Path] = []
    for file in _walk(folder):
        files.append(file)
        if len(files) > _MOST_FILES:
            raise UserError(f"{folder}: has more than {_MOST_FILES} files: name the folder of the model alone")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        yield from (file for name in names if (file := Path(place, name)).is_file())


def _folders(pipeline: "Pipeline", summary: RunSummary) -> list[str]:
    made = (pipeline.made_tokenizer, *(part.stored_pair_biases for part in pipeline.parts))
    return [*summary.places.values(), *(folder.url for folder in made if folder)]


def _manifests(urls: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each folder's manifest. Raises UserError if one has none."""
    contents = {url: read_bytes(join_url(url, MANIFEST)) for url in urls}
    if missing := [url for url, content in contents.items() if content is None]:
        raise UserError(f"{missing[0]}: is not complete: run its stage again")
    return {url: sha256(content).hexdigest() for url, content in contents.items() if content is not None}


def _has_same_manifests(finished: FinishedRun) -> bool:
    """Whether the store still holds what the run has made, and nothing was asked for again."""
    if _manifests(list(finished.stored)) != finished.stored:
        return False
    for url in finished.stored:
        kind = url.rsplit("/", 2)[1]
        if kind == "students":
            student = stored_folder(url)
            if student.is_to_be_replaced or student.has(CHECKPOINTS):
                return False
        elif kind == "tokenizers":
            stored_folder(url).fetch()  # raises UserError for one that is damaged
    return True


def _check_unchanged(pipeline: "Pipeline", *, with_student: bool) -> None:
    """Raise UserError if a file of a model was changed since the run named its datasets by it."""
    models = (*(part.teacher for part in pipeline.parts), pipeline.source)
    tokenizers = (*(model.tokenizer for model in models), pipeline.named_tokenizer, pipeline.student_tokenizer)
    for model in models:
        model.check_unchanged()
    for tokenizer in filter(None, tokenizers):
        tokenizer.check_unchanged()
    if with_student:
        pipeline.distillation.check_unchanged()
