"""What the stages ask of a tokenizer most often, found out once on a machine, so that it need not be loaded for it.

The facts are on disk by the hashes of all files that a tokenizer may be loaded from. Hashing them takes 0.03 s for a
vocabulary of 262,000 tokens, and loading over a second. Sizes and times of files are not used in place of hashes, since
an edit within a clock tick of a network disk, or a program that sets times back (`rsync -t`, `tar`), would go unseen.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from alm_pipeline.runtime.derived_files import read_derived, write_derived
from alm_pipeline.runtime.versions import installed_version
from alm_pipeline.tokenization.templates.choice import Templates
from alm_pipeline.vocabulary import framing
from alm_pipeline.vocabulary.framing import plain_backend, special_tokens_around, spells_special_tokens
from alm_pipeline.vocabulary.text_forms import TextForm, forms_of
from storage.errors import UserError, user_error
from storage.fingerprints import combine_hashes, fingerprint, hash_files

if TYPE_CHECKING:  # importing it takes a second
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TokenizerFacts:
    """What is known of a tokenizer with the chat template of its own."""

    definition: str
    """the SHA-256 of the tokenizer as JSON, without truncation, padding and dropout"""
    special_tokens_map: dict[str, Any]
    chat_template: Templates
    identity: str
    """as `identity_of` returns it"""
    highest_id: int
    frame: tuple[list[int], list[int]] | None
    """the ids around every text; None if they can't be separated from the text's own"""
    forms: tuple[str, ...]
    """the text forms, serialized"""
    spells_special: bool
    """whether a special token's literal, read as text, gives a special token"""

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast") -> tuple["TokenizerFacts", str]:
        """Return the facts of a loaded tokenizer, and its definition."""
        backend = plain_backend(tokenizer.backend_tokenizer)
        definition = backend.to_str()
        roles, template = tokenizer.special_tokens_map, tokenizer.chat_template
        facts = cls(
            definition=hashlib.sha256(definition.encode()).hexdigest(),
            special_tokens_map=roles,
            chat_template=template,
            identity=identity_of(definition, roles, template),
            highest_id=max(backend.get_vocab().values(), default=-1),
            frame=_frame(backend),
            forms=tuple(form.serialized for form in forms_of(backend)),
            spells_special=_spells_special(backend),
        )
        return facts, definition

    @property
    def text_forms(self) -> tuple[TextForm, ...]:
        return tuple(map(TextForm, self.forms))


def identity_of(definition: str, special_tokens_map: Mapping[str, Any], chat_template: Templates) -> str:
    """Return the hash of what a tokenizer decides: its definition, its roles and its chat templates."""
    state = [definition, special_tokens_map, chat_template]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def recorded_facts(files: Mapping[str, str]) -> TokenizerFacts | None:
    """Return the facts of the tokenizer that is loaded from files with these SHA-256s, if this machine knows them."""
    content = read_derived(_facts_file(files))
    if content is None:
        return None
    facts = json.loads(bytes(content))
    frame, forms = facts["frame"], facts["forms"]
    return TokenizerFacts(**facts | {"frame": frame and tuple(frame), "forms": tuple(forms)})


def record_facts(files: Mapping[str, str], facts: TokenizerFacts, definition: str) -> None:
    """Record the facts and the definition of a tokenizer for other processes of this machine."""
    write_derived(_definition_file(facts.definition), definition.encode())
    write_derived(_facts_file(files), json.dumps(asdict(facts)).encode())


def recorded_definition(sha256: str) -> str | None:
    """Return a tokenizer as JSON by its SHA-256, if this machine has recorded it."""
    content = read_derived(_definition_file(sha256))
    return None if content is None else str(content, "utf-8")


def _frame(backend: Tokenizer) -> tuple[list[int], list[int]] | None:
    try:
        with user_error("", ""):
            return special_tokens_around(backend)
    except UserError:  # reported by the first stage that needs them
        return None


def _spells_special(backend: Tokenizer) -> bool:
    try:
        with user_error("", ""):
            return spells_special_tokens(backend)
    except UserError:  # reported by the first stage that encodes a text
        return False


def _facts_file(files: Mapping[str, str]) -> str:
    return f"{fingerprint({'facts of': combine_hashes(files), **_circumstances()})}.json"


def _definition_file(sha256: str) -> str:
    return f"{sha256}.json"


@cache
def _circumstances() -> dict[str, Any]:
    """Return what else decides the facts: the code, and the libraries that load a tokenizer."""
    folders = (Path(__file__).parent, Path(framing.__file__).parent)
    code = [hash_files(folder, ("*.py",)) for folder in folders]
    return {"code": code, **{name: installed_version(name) for name in ("tokenizers", "transformers")}}
