"""A tokenizer as one object: loaded once, and passed to every stage that needs something of it."""

import contextlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from alm_pipeline.models.damage import VOCABULARY, check_documents, check_merges, reading_tokenizer
from alm_pipeline.models.files import label, tokenizer_files
from alm_pipeline.models.library_log import quiet_transformers
from alm_pipeline.tokenization.chat.template import ChatTemplate
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view
from alm_pipeline.vocabulary.framing import special_tokens_around
from alm_pipeline.vocabulary.text_forms import NFC, TextForm, forms_of, text_forms
from storage.errors import UserError, user_error
from storage.fingerprints import TOKENIZER_FILES, hash_files


class LoadedTokenizer:
    """A fast tokenizer, and what the stages need to know of it.

    Every property is computed when it is first used, and then kept. The identity and the text forms need no
    vocabulary, which takes seconds to parse, so a process that only names datasets stays quick.
    """

    def __init__(self, name: str, loaded: PreTrainedTokenizerFast | None = None) -> None:
        """`name` is a folder, a hub name or `demo:NAME`; `loaded` is the tokenizer if it is already in memory."""
        self.name, self._loaded = name, loaded

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "LoadedTokenizer":
        """Wrap a tokenizer that is in memory only."""
        return cls(str(tokenizer.name_or_path), tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        """Another process gets the name alone: it loads the tokenizer itself, and sees if its files differ there."""
        return {"name": self.name, "_loaded": self._loaded}

    @cached_property
    def file(self) -> Path:
        """The local tokenizer.json. Raises UserError if there is none."""
        file = tokenizer_files(self.name) / VOCABULARY
        if not file.is_file():
            check_documents(file.parent, (VOCABULARY,))  # it may be there, but not be a file
            raise UserError(
                f"{self.name}: has no tokenizer.json: save a fast tokenizer there "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
            )
        return file

    @cached_property
    def fast(self) -> PreTrainedTokenizerFast:
        """The tokenizer, exactly as its tokenizer.json defines it (AutoTokenizer rebuilds some with other ids).

        It is shared: nothing may change its settings. Raises UserError naming the file that is damaged.
        """
        if self._loaded is not None:
            return self._loaded
        folder = self.file.parent
        check_merges(self.file)
        with reading_tokenizer(self.name, folder), quiet_transformers():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            # what is read only when a text is encoded or decoded fails here, and not in the middle of a stage
            tokenizer.decode(tokenizer.encode("a"))
            _check_template(self.name, tokenizer)
        return tokenizer

    @cached_property
    def encoding_backend(self) -> Tokenizer:
        """The backend that encodes whole texts: without the truncation, padding or dropout saved with the tokenizer.

        Those would cut texts, let an example's tokens depend on its neighbors, or be random. One encoder at a time
        may use it: an engine switches how it reads the literals of special tokens.
        """
        backend = self.fast.backend_tokenizer
        is_plain = backend.truncation is None and backend.padding is None and not _dropout(backend)
        return backend if is_plain else _without_truncation(backend)

    @cached_property
    def view(self) -> ByteView:
        """The bytes of every token. Raises UserError for a tokenizer whose bytes are not known exactly."""
        with user_error(f"{self.name}: the bytes of its tokens can't be read off its tokenizer.json", "save it again"):
            return byte_view(self.fast.backend_tokenizer)

    @cached_property
    def boundary_ids(self) -> npt.NDArray[np.int64]:
        """[K] the ids of the boundary tokens, in order."""
        return np.flatnonzero(self.view.boundary(self.view.size))

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after every text."""
        with user_error(
            f"{self.name}: the tokens that its tokenizer.json puts around a text can't be told from the text's",
            "check its post_processor and its model, or save the tokenizer again",
        ):
            return special_tokens_around(self.fast)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, with the grammar that is learned from it."""
        return ChatTemplate(self.fast)

    @cached_property
    def forms(self) -> tuple[TextForm, ...]:
        """The text forms that the normalizer produces."""
        if self._loaded is not None:
            return forms_of(self._loaded.backend_tokenizer)
        with reading_tokenizer(self.name, self.file.parent):
            state = _without_model(self.file.read_text(encoding="utf-8"))
            return text_forms(state["normalizer"], state["decoder"])

    @cached_property
    def identity(self) -> str:
        """A hash of the tokenizer's files, wherever they are."""
        return hash_files(tokenizer_files(self.name), TOKENIZER_FILES)

    @property
    def label(self) -> str:
        """A short readable name for folders."""
        return label(self.name)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer by name. Raises UserError if it has no tokenizer.json."""
    return LoadedTokenizer(name).fast


def common_forms(tokenizers: Iterable[LoadedTokenizer]) -> tuple[str, ...]:
    """Return the forms that all these tokenizers leave as they are: NFC, and what else each makes of texts."""
    forms = [form for tokenizer in tokenizers for form in tokenizer.forms]
    return tuple(dict.fromkeys(form.serialized for form in [NFC, *forms]))


def _without_model(text: str) -> dict[str, Any]:
    """Parse a tokenizer.json without its model if possible: a large vocabulary takes seconds."""
    before = re.split(r',\s*"model"\s*:', text, maxsplit=1)[0]
    with contextlib.suppress(ValueError):
        # only the outermost object is whole with one more brace; `tokenizers` writes the model last
        state: dict[str, Any] = json.loads(before + "}")
        if {"normalizer", "decoder"} <= state.keys():
            return state
    return dict(json.loads(text))


def _check_template(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template: Any = tokenizer.chat_template
    templates = list(template.values()) if isinstance(template, dict) else [template]
    if other := [type(item).__name__ for item in templates if not isinstance(item, str | None)]:
        raise UserError(
            f"{name}: its chat template is not a text but of type {other[0]}: fix chat_template in "
            "tokenizer_config.json, or remove it"
        )


def _dropout(backend: Tokenizer) -> float | None:
    return backend.model.dropout if isinstance(backend.model, models.BPE) else None


def _without_truncation(backend: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    if isinstance(copy.model, models.BPE):
        copy.model.dropout = None
    return copy
