"""The form of text that a tokenizer's normalizer means: NFC, lower case, without accents, …

A normalizer does two things. Some steps prepare the text for the vocabulary's spelling (a space in front, U+2581 for
spaces) and leave it the same text: `byte_view` knows them. Others make it another text, and to the model there is no
other: a corpus is put into that form first, so that both sides see the same text.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, normalizers

from alm_pipeline.vocabulary.byte_view import component, stand_in, steps
from storage.errors import UserError

Component = dict[str, Any]

# white space at the edges that `Strip` takes off is covered by no token
_SPELLING = ("Prepend", "ByteLevel", "Strip")
_ROUNDS = 4


@dataclass(frozen=True)
class TextForm:
    """One step of a normalizer that changes the text. `serialized` is the step as a tokenizer.json has it."""

    serialized: str

    @property
    def name(self) -> str:
        """The step's type, lower case with underscores: `nfc`, `lowercase`, `strip_accents`, `replace`."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "_", json.loads(self.serialized)["type"]).lower()

    def normalizer(self) -> normalizers.Normalizer:
        state = json.loads(Tokenizer(models.BPE()).to_str())
        made = Tokenizer.from_str(json.dumps({**state, "normalizer": json.loads(self.serialized)})).normalizer
        assert isinstance(made, normalizers.Normalizer)
        return made


_NAMED = {
    **{name.lower(): name for name in ("NFC", "NFD", "NFKC", "NFKD")},
    "lowercase": "Lowercase",
    "strip_accents": "StripAccents",
}
NFC = TextForm('{"type": "NFC"}')


def text_forms(normalizer: Component | None, decoder: Component | None) -> tuple[TextForm, ...]:
    """What a tokenizer's normalizer makes of a text, step by step; empty where it leaves texts as they are.

    Both components as a tokenizer.json has them.
    """
    turned_back = {stand_in(step) for step in steps(decoder)}
    return tuple(TextForm(json.dumps(_as_form(step))) for step in steps(normalizer) if not _spells(step, turned_back))


def forms_of(tokenizer: Tokenizer) -> tuple[TextForm, ...]:
    """The forms that a loaded tokenizer means."""
    return text_forms(component(tokenizer.normalizer), component(tokenizer.decoder))


def _spells(step: Component, turned_back: set[str | None]) -> bool:
    return step["type"] in _SPELLING or (step["type"] == "Replace" and step["content"] in turned_back)


def _as_form(step: Component) -> Component:
    # spaces around Han characters only cut words: no token covers them
    return {**step, "handle_chinese_chars": False} if step["type"] == "BertNormalizer" else step


def form_named(name: str) -> TextForm:
    """A form by its name, or as a tokenizer.json has it. Raises UserError for a name that is none."""
    if name.startswith("{"):
        return TextForm(name)
    if name not in _NAMED:
        raise UserError(f"corpus.normalize: there is no form {name!r}; there are {', '.join(_NAMED)}")
    return TextForm(json.dumps({"type": _NAMED[name]}))


class FormsDisagree(ValueError):
    """The forms of both sides undo each other on this text: no text is the same to both."""


class TextNormalizer:
    """Puts texts into several forms at once."""

    def __init__(self, forms: Sequence[TextForm]) -> None:
        self._steps = [form.normalizer() for form in dict.fromkeys(forms)]
        self._nfc_only = all(form == NFC for form in forms)

    def __call__(self, text: str) -> str:
        """The text in a form that no step changes any more. Raises FormsDisagree where there is none."""
        # 25 times as fast; Python's Unicode may be a version behind, and what it misses is counted out when encoded
        if self._nfc_only and unicodedata.is_normalized("NFC", text):
            return text
        for _ in range(_ROUNDS):
            changed = False
            for step in self._steps:
                before, text = text, step.normalize_str(text)
                changed |= text != before
            if not changed:
                return text
        raise FormsDisagree
