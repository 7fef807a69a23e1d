"""The texts of token ids, also of tokens that cover no byte of an example: special tokens, chat templates, tools.

A tokens dataset holds ids alone. Its tokenizer is looked for by its hash: among the store's tokenizers, and under the
names in the configuration that its manifest records.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from alm_pipeline.models.tokenizer import LoadedTokenizer
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
            return next((tokenizer.view.spelling for tokenizer in _candidates(self._tokens)), ())
        except (UserError, OSError):
            return ()

    def of(self, id_: int) -> bytes:
        """Return the bytes of a token; none if they are not known."""
        return self._spelling[id_] if 0 <= id_ < len(self._spelling) else b""

    def __call__(self, id_: int) -> str:
        """Return the text of a token, with U+FFFD for bytes that are not whole characters; or its id in brackets."""
        return self.of(id_).decode(errors="replace") or f"<{id_}>"


def _candidates(tokens: Dataset) -> Iterator[LoadedTokenizer]:
    """Yield the tokenizers that have the dataset's hash, wherever they are now."""
    wanted = tokens.identity.get("tokenizer")
    if not wanted:
        return
    for tokenizer in (*_stored(tokens.root, wanted), *map(LoadedTokenizer, _recorded_names(tokens))):
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


def _recorded_names(tokens: Dataset) -> list[str]:
    manifest = tokens.manifest()
    config = manifest.provenance.get("configuration") if manifest else None
    if not isinstance(config, Mapping):
        return []
    student: Any = config.get("student")
    named = [config.get("teacher"), *(map(student.get, ("tokenizer", "model")) if isinstance(student, Mapping) else ())]
    return [name for name in dict.fromkeys(filter(_is_name, named)) if isinstance(name, str)]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value != "bytes"
