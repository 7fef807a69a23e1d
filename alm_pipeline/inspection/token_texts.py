"""The texts of token ids, also of tokens that cover no byte of an example: special tokens, chat templates, tools.

A tokens dataset holds ids alone. Its tokenizer is looked for by its hash: among the store's tokenizers, and under the
names in the configuration that its manifest records.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from alm_pipeline.config import TemplateConfig
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from storage.dataset import Dataset
from storage.errors import UserError
from storage.folders import load_folder_manifest, stored_folder
from storage.urls import join_url, list_folders


class TokenTexts:
    """The texts of a tokens dataset's ids; an id in angle brackets where its tokenizer is no longer there."""

    def __init__(self, tokens: Dataset) -> None:
        self._tokens = tokens

    @cached_property
    def _spelling(self) -> tuple[bytes, ...]:
        try:
            return next((tokenizer.view.spelling for tokenizer in tokenizers_of(self._tokens)), ())
        except (UserError, OSError):
            return ()

    def of(self, id_: int) -> bytes:
        """Return the bytes of a token; none if they are not known."""
        return self._spelling[id_] if 0 <= id_ < len(self._spelling) else b""

    def __call__(self, id_: int) -> str:
        """Return the text of a token, with U+FFFD for bytes that are not whole characters; or its id in brackets."""
        return self.of(id_).decode(errors="replace") or f"<{id_}>"


def tokenizers_of(tokens: Dataset) -> Iterator[LoadedTokenizer]:
    """Yield the tokenizers that have the dataset's hash, wherever they are now."""
    wanted = tokens.identity.get("tokenizer")
    if not wanted:
        return
    for tokenizer in (*_stored(tokens.root, wanted), *_recorded(tokens)):
        try:
            if tokenizer.identity == wanted:
                yield tokenizer
        except (UserError, OSError):  # it has gone, or can't be fetched now
            continue


def _stored(root: str, wanted: str) -> Iterator[LoadedTokenizer]:
    for name in list_folders(join_url(root, "tokenizers")):
        url = join_url(root, "tokenizers", name)
        try:
            manifest = load_folder_manifest(url)
            if manifest and manifest.content == wanted:
                yield LoadedTokenizer(str(stored_folder(url).fetch()))
        except UserError:  # damaged: `alm verify` says so
            continue


def _recorded(tokens: Dataset) -> Iterator[LoadedTokenizer]:
    """Yield the tokenizers in the configuration that a dataset records, each with its side's template."""
    manifest = tokens.manifest()
    config = manifest.provenance.get("configuration") if manifest else None
    if not isinstance(config, Mapping):
        return
    student = config.get("student")
    student = student if isinstance(student, Mapping) else {}
    named = [(config.get("teacher"), "teacher_template", config.get("teacher_template"))]
    named += [(student.get(name), "student.template", student.get("template")) for name in ("tokenizer", "model")]
    for name, setting, template in named:
        if isinstance(name, str) and _is_name(name):
            yield LoadedTokenizer(name, template=_choice(setting, template))


def _choice(setting: str, recorded: Any) -> TemplateChoice | None:
    value = TemplateConfig.model_validate(recorded) if isinstance(recorded, Mapping) else recorded
    return TemplateChoice.of(setting, value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value != "bytes"
