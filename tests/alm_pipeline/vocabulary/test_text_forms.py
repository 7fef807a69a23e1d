"""The form that a tokenizer puts texts into, and texts that are put into several forms."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from alm_pipeline.vocabulary.text_forms import (
    NFC,
    FormsDisagree,
    TextForm,
    TextNormalizer,
    form_named,
    forms_of,
)
from storage.errors import UserError


def names(normalizer: Any, decoder: Any = None) -> list[str]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    if decoder is not None:
        tokenizer.decoder = decoder
    return [form.name for form in forms_of(tokenizer)]


def test_without_a_normalizer_there_are_no_forms() -> None:
    assert forms_of(Tokenizer(models.BPE())) == ()


def test_forms_by_name() -> None:
    steps = [normalizers.NFC(), normalizers.Lowercase(), normalizers.StripAccents(), normalizers.BertNormalizer()]
    assert names(normalizers.Sequence(steps)) == ["nfc", "lowercase", "strip_accents", "bert_normalizer"]
    assert names(normalizers.Sequence([normalizers.Sequence([normalizers.NFD()])])) == ["nfd"]


def test_steps_that_prepare_the_spelling_are_not_forms() -> None:
    space = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    back = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    assert names(normalizers.Sequence(space), back) == []
    assert names(normalizers.Replace(" ", "_"), back) == ["replace"]
    assert names(normalizers.Replace(" ", "\u2581"), decoders.Metaspace()) == []
    assert names(normalizers.Sequence([normalizers.ByteLevel(), normalizers.Strip()])) == []


def test_runs_of_spaces_are_replaced_by_one() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    assert TextNormalizer(forms_of(tokenizer))("a   b  c d") == "a b c d"


def test_berts_spaces_around_han_characters_are_ignored() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.BertNormalizer()
    assert TextNormalizer(forms_of(tokenizer))("ÉTÉ 東京\x00\u2003x") == "ete 東京 x"


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_nfc_is_what_the_tokenizers_normalizer_makes(text: str) -> None:
    assert TextNormalizer([NFC])(text) == normalizers.NFC().normalize_str(text)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["nfc", "nfkc", "lowercase"]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_result_is_stable_under_every_step(text: str, name: str) -> None:
    forms = [form_named(name), form_named("lowercase"), NFC]
    try:
        result = TextNormalizer(forms)(text)
    except FormsDisagree:
        return
    assert all(form.normalizer().normalize_str(result) == result for form in forms)


def test_forms_that_undo_each_other() -> None:
    normalize = TextNormalizer([form_named("nfc"), form_named("nfd")])
    assert normalize("plain") == "plain"
    with pytest.raises(FormsDisagree):
        normalize("\u00e9")


def test_without_forms_nothing_changes() -> None:
    assert TextNormalizer([])("e\u0301 A ") == "e\u0301 A "


def test_a_form_by_its_json() -> None:
    serialized = json.dumps({"type": "Replace", "pattern": {"String": "``"}, "content": '"'})
    assert form_named(serialized) == TextForm(serialized)
    assert TextNormalizer([form_named(serialized)])("``a``") == '"a"'


def test_an_unknown_name() -> None:
    with pytest.raises(
        UserError, match="'nfx' is not a form; the forms are nfc, nfd, nfkc, nfkd, lowercase, strip_accents"
    ):
        form_named("nfx")
