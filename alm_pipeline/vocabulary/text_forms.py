"""The form that a tokenizer's normalizer puts a text into: NFC, lower case, without accents, …

A normalizer has two kinds of steps. Some prepare the text for the vocabulary's spelling (a space in front, U+2581 for
spaces) without changing what it says: `byte_view` handles those. The others change the text, and the model only ever
sees the changed one. So the corpus is put into that form first, and both sides see the same text.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, normalizers

from alm_pipeline.config.fields.spelling import nearest_with_meaning
from alm_pipeline.vocabulary.byte_view import component, stand_in, steps
from storage.errors import UserError

Component = dict[str, Any]

# `Strip` among them: no token covers the white space that it removes at the edges
_SPELLING = ("Prepend", "ByteLevel", "Strip")
_ROUNDS = 4


@dataclass(frozen=True)
class TextForm:
    """One step of a normalizer that changes the text. `serialized` is the step as in a tokenizer.json."""

    serialized: str

    @property
    def name(self) -> str:
        """The step's type in snake case: `nfc`, `lowercase`, `strip_accents`, `replace`."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "_", json.loads(self.serialized)["type"]).lower()

    def normalizer(self) -> normalizers.Normalizer:
        state = json.loads(Tokenizer(models.BPE()).to_str())
        tokenizer = Tokenizer.from_str(json.dumps({**state, "normalizer": json.loads(self.serialized)}))
        assert isinstance(tokenizer.normalizer, normalizers.Normalizer)
        return tokenizer.normalizer


NAMED_FORMS = {
    **{name.lower(): name for name in ("NFC", "NFD", "NFKC", "NFKD")},
    "lowercase": "Lowercase",
    "strip_accents": "StripAccents",
}
NFC = TextForm('{"type": "NFC"}')


def text_forms(normalizer: Component | None, decoder: Component | None) -> tuple[TextForm, ...]:
    """Return the forms that a tokenizer's normalizer puts a text into, in order; none if it leaves texts unchanged.

    Both components are as in a tokenizer.json.
    """
    stand_ins = {stand_in(step) for step in steps(decoder)}
    return tuple(TextForm(json.dumps(_as_form(step))) for step in steps(normalizer) if not _spells(step, stand_ins))


def forms_of(tokenizer: Tokenizer) -> tuple[TextForm, ...]:
    """Return the forms that a loaded tokenizer puts a text into."""
    return text_forms(component(tokenizer.normalizer), component(tokenizer.decoder))


def _spells(step: Component, stand_ins: set[str | None]) -> bool:
    return step["type"] in _SPELLING or (step["type"] == "Replace" and step["content"] in stand_ins)


def _as_form(step: Component) -> Component:
    # the spaces that it puts around Han characters only separate words: no token covers them
    return {**step, "handle_chinese_chars": False} if step["type"] == "BertNormalizer" else step


def form_named(name: str) -> TextForm:
    """Return a form by its name, or by its JSON as in a tokenizer.json. Raises UserError for an unknown name."""
    if name.startswith("{"):
        return TextForm(name)
    if name not in NAMED_FORMS:
        hint = nearest_with_meaning(name, dict.fromkeys(NAMED_FORMS, ""))
        raise UserError(f"corpus.normalize: {name!r} is not a form; the forms are {', '.join(NAMED_FORMS)}{hint}")
    return TextForm(json.dumps({"type": NAMED_FORMS[name]}))


class FormsDisagree(ValueError):
    """The forms of both sides undo each other on this text, so no form of it is stable under both."""


class TextNormalizer:
    """Puts texts into several forms at once."""

    def __init__(self, forms: Sequence[TextForm]) -> None:
        self._steps = [form.normalizer() for form in dict.fromkeys(forms)]
        self._nfc_only = all(form == NFC for form in forms)

    def __call__(self, text: str) -> str:
        """Return the text in a form that no step changes any more. Raises FormsDisagree if there is none."""
        # 25 times as fast. Python's Unicode version may be older; texts that it gets wrong are dropped when encoded
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
