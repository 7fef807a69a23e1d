"""A tokenizer as one object: loaded once, and passed to every stage that needs something of it."""

import copy
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from alm_pipeline.models.files import SMALL_FILES, is_on_hub, label, tokenizer_files
from alm_pipeline.models.health.damage import VOCABULARY, check_documents, check_merges, reading_tokenizer
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.tokenizer_facts import (
    TokenizerFacts,
    identity_of,
    record_facts,
    recorded_definition,
    recorded_facts,
)
from alm_pipeline.tokenization.chat.template import ChatTemplate
from alm_pipeline.tokenization.templates.choice import TemplateChoice, Templates
from alm_pipeline.vocabulary.byte_view import ByteView
from alm_pipeline.vocabulary.framing import plain_backend, special_tokens_around
from alm_pipeline.vocabulary.text_forms import NFC, TextForm
from alm_pipeline.vocabulary.view_file import shared_view
from storage.errors import UserError, user_error
from storage.fingerprints import ReadFiles, hash_files

if TYPE_CHECKING:  # importing it takes a second
    from transformers import PreTrainedTokenizerFast

_FILES = (*SMALL_FILES, "additional_chat_templates/*.jinja")
_BYTES_WORTH_RECORDING = 2**20
"""of a tokenizer.json: a smaller one is loaded in no time"""


class LoadedTokenizer:
    """A fast tokenizer, and what the stages need to know of it.

    Every property is computed when it is first used, and then kept. For a vocabulary of 260,000 tokens, loading takes
    one to three seconds, and the identity, the byte view and the rest two more. So this machine records all but what
    transformers itself is needed for (chat templates, saving): a later process begins without loading anything.
    """

    def __init__(
        self,
        name: str,
        loaded: "PreTrainedTokenizerFast | None" = None,
        *,
        revision: str | None = None,
        template: TemplateChoice | None = None,
    ) -> None:
        """`name` is a folder, a hub name or `demo:NAME`; `loaded` is the tokenizer if it is already in memory.

        `revision` is the commit of a hub's tokenizer; by default the main branch's. `template` replaces its chat
        template.
        """
        self.name, self._loaded, self._revision, self._choice = name, loaded, revision, template

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast") -> "LoadedTokenizer":
        """Wrap a tokenizer that is in memory only."""
        return cls(str(tokenizer.name_or_path), tokenizer)

    def with_template(self, template: TemplateChoice | None) -> "LoadedTokenizer":
        """Return this tokenizer with another chat template; itself if None is chosen. What is loaded is shared."""
        if template is None:
            return self
        other = LoadedTokenizer(self.name, self._loaded, revision=self._revision, template=template)
        other._base = self
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Another process gets the name and the commit alone: it loads the tokenizer itself, and sees if it differs.

        And the choice of a template: its file is read there, too.
        """
        revision = self._revision or ("_folder" in vars(self) and is_on_hub(self.name) and self._folder.name) or None
        return {"name": self.name, "_loaded": self._loaded, "_revision": revision, "_choice": self._choice}

    @cached_property
    def _folder(self) -> Path:
        return tokenizer_files(self.name, self._revision)

    @cached_property
    def file(self) -> Path:
        """The local tokenizer.json. Raises UserError if there is none."""
        file = self._folder / VOCABULARY
        if not file.is_file():
            check_documents(file.parent, (VOCABULARY,))  # it may be there, but not be a file
            raise UserError(
                f"{self.name}: has no tokenizer.json: save a fast tokenizer there "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
            )
        return file

    _base: "LoadedTokenizer | None" = None
    """the same tokenizer with its own template, where that is loaded as well"""

    @cached_property
    def fast(self) -> "PreTrainedTokenizerFast":
        """The tokenizer, exactly as its tokenizer.json defines it (AutoTokenizer rebuilds some with other ids).

        It is shared: nothing may change its settings. Raises UserError naming the file that is damaged, or the setting
        whose template is not valid.
        """
        if self._choice is None:
            return self._own
        # it shares all but the template: the vocabulary takes much memory
        tokenizer = copy.copy(self._own)
        tokenizer.chat_template = self._choice.applied(self._own.chat_template, self.name)
        return tokenizer

    @cached_property
    def chat_template(self) -> Templates:
        """The chat template as it is chosen. Raises UserError as `fast` does."""
        return self._own_template if self._choice is None else self._choice.applied(self._own_template, self.name)

    @cached_property
    def template_without_arguments(self) -> Templates:
        """The chat template as it is chosen, without the arguments that are written into it."""
        own = self._own_template
        return own if self._choice is None else replace(self._choice, arguments={}).applied(own, self.name)

    @property
    def _own_template(self) -> Templates:
        return self._base.chat_template if self._base else self._facts.chat_template

    @cached_property
    def _facts(self) -> TokenizerFacts:
        """What is known of the tokenizer, which is loaded only if this machine has not recorded it."""
        if self._base:
            return self._base._facts
        if self._loaded is not None:
            return TokenizerFacts.of(self._loaded)[0]
        if not self._is_recorded:
            return TokenizerFacts.of(self._own)[0]
        if facts := recorded_facts(self._files.hashes):
            return facts
        facts, definition = TokenizerFacts.of(self._own)
        self._files.check()  # the facts are those of the files that were hashed
        record_facts(self._files.hashes, facts, definition)
        return facts

    @cached_property
    def _is_recorded(self) -> bool:
        return self._loaded is None and self.file.stat().st_size >= _BYTES_WORTH_RECORDING

    @cached_property
    def _files(self) -> ReadFiles:
        """The files that it may be loaded from, hashed, so that a change is noticed even where times are set back."""
        return self._hashed_files()

    def _hashed_files(self) -> ReadFiles:
        folder = self.file.parent
        files = ReadFiles(lambda: _small_files(folder))
        _ = files.hashes
        return files

    @cached_property
    def _own(self) -> "PreTrainedTokenizerFast":
        """The tokenizer with its own template."""
        if self._base:
            return self._base.fast
        if self._loaded is not None:
            return self._loaded
        folder, files = self.file.parent, self._hashed_files()
        check_merges(self.file)
        with reading_tokenizer(self.name, folder), quiet_transformers():
            from transformers import PreTrainedTokenizerFast

            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            for how_loaded in ("is_local", "local_files_only"):  # saved otherwise; HF_HUB_OFFLINE would change its hash
                tokenizer.init_kwargs.pop(how_loaded, None)
            # what is read only when a text is encoded or decoded fails here, and not in the middle of a stage
            tokenizer.decode(tokenizer.encode("a"))
            _check_template(self.name, tokenizer)
        if "_facts" in vars(self) and files.hashes != self._files.hashes:
            self._require_same(tokenizer)
        self._files = files
        return tokenizer

    def _require_same(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Raise UserError if a tokenizer that was loaded after its files changed is not the one that is known."""
        if TokenizerFacts.of(tokenizer)[0] != self._facts:
            self._files.check()
            raise AssertionError("files with other hashes are not noticed")

    @cached_property
    def encoding_backend(self) -> Tokenizer:
        """The backend that encodes whole texts: without the truncation, padding or dropout saved with the tokenizer.

        Those would cut texts, let an example's tokens depend on its neighbors, or be random. One encoder at a time
        may use it: an engine switches how it reads the literals of special tokens.
        """
        if self._base:
            return self._base.encoding_backend
        # the facts first: where this machine does not know them, they need the tokenizer itself
        definition = self._recorded_definition()
        if definition is None or "_own" in vars(self):
            return plain_backend(self.fast.backend_tokenizer)
        return Tokenizer.from_str(definition)

    @cached_property
    def view(self) -> ByteView:
        """The bytes of every token. Raises UserError for a tokenizer whose bytes are not known exactly."""
        if self._base:
            return self._base.view
        with user_error(f"{self.name}: the bytes of its tokens can't be read off its tokenizer.json", "save it again"):
            return shared_view(self._facts.definition, lambda: self.encoding_backend, on_disk=self._is_recorded)

    @cached_property
    def highest_id(self) -> int:
        """The highest id of a token, known long before the view is."""
        return self._facts.highest_id

    @cached_property
    def boundary_ids(self) -> npt.NDArray[np.int64]:
        """[K] the ids of the boundary tokens, in order."""
        return np.flatnonzero(self.view.boundary(self.view.size))

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after every text."""
        if self._facts.frame is not None:
            return self._facts.frame
        with user_error(
            f"{self.name}: the tokens around a text can't be separated from the text's own",
            "check its post_processor and its model, or save the tokenizer again",
        ):
            return special_tokens_around(self.encoding_backend)

    @property
    def spells_special(self) -> bool:
        """Whether a special token's literal, read as text, gives a special token."""
        return self._facts.spells_special

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, with the grammar that is learned from it."""
        return ChatTemplate(self.fast)

    @cached_property
    def forms(self) -> tuple[TextForm, ...]:
        """The text forms that the normalizer produces."""
        return self._facts.text_forms

    @cached_property
    def identity(self) -> str:
        """A hash of what the loaded tokenizer decides, wherever it is: ids, special tokens' roles, chat templates.

        How its files are written does not change it, and neither does truncation, padding or dropout that is saved with
        it, since no stage encodes with them. Another version of `tokenizers` may write the same tokenizer differently.
        """
        facts = self._facts
        if self.chat_template == facts.chat_template:
            return facts.identity
        definition = self._recorded_definition() or self.encoding_backend.to_str()
        return identity_of(definition, facts.special_tokens_map, self.chat_template)

    @property
    def definition(self) -> str:
        """A hash of what decides a text's tokens: the same for tokenizers that differ in roles and templates alone."""
        return self._facts.definition

    def _recorded_definition(self) -> str | None:
        return recorded_definition(self._facts.definition) if self._is_recorded else None

    @cached_property
    def saved_identity(self) -> str:
        """A hash of the files that are written with a student or tokenizer made from it.

        They also hold what no stage uses (the longest text, the side of padding, …).
        """
        with tempfile.TemporaryDirectory() as scratch:
            self.fast.save_pretrained(scratch)
            return hash_files(Path(scratch), ("**/*",))

    def check_unchanged(self) -> None:
        """Raise UserError if the tokenizer's files were changed since it was loaded, and now make another tokenizer.

        What is made with a tokenizer must not be finished before this. It is cheap as long as no file changes.
        """
        if self._base:
            self._base.check_unchanged()
        if not (files := vars(self).get("_files")):
            return
        try:
            files.check()
        except UserError:
            again = LoadedTokenizer(self.name, revision=self._revision, template=self._choice)
            if again.saved_identity != self.saved_identity:
                raise
            self._files = again._files

    @property
    def label(self) -> str:
        """A short readable name for folders."""
        return label(self.name)


def load_tokenizer(name: str) -> "PreTrainedTokenizerFast":
    """Load a fast tokenizer by name. Raises UserError if it has no tokenizer.json."""
    return LoadedTokenizer(name).fast


def common_forms(tokenizers: Iterable[LoadedTokenizer]) -> tuple[str, ...]:
    """Return the forms that all these tokenizers leave as they are: NFC, and what else each makes of texts."""
    forms = [form for tokenizer in tokenizers for form in tokenizer.forms]
    return tuple(dict.fromkeys(form.serialized for form in [NFC, *forms]))


def _check_template(name: str, tokenizer: "PreTrainedTokenizerFast") -> None:
    template: Any = tokenizer.chat_template
    templates = list(template.values()) if isinstance(template, dict) else [template]
    if other := [type(item).__name__ for item in templates if not isinstance(item, str | None)]:
        raise UserError(
            f"{name}: its chat template is not a text but of type {other[0]}: fix chat_template in "
            "tokenizer_config.json, or remove it"
        )


def _small_files(folder: Path) -> dict[str, Path]:
    """Return the files that a tokenizer may be loaded from, and others like them, by name.

    None is deeper: below may be anything, such as the checkpoints of a training.
    """
    files = [file for pattern in _FILES for file in folder.glob(pattern) if file.is_file()]
    return {file.relative_to(folder).as_posix(): file for file in files}
