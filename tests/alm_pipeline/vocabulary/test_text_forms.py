"""The form of text that a tokenizer means, and texts in several forms at once."""

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


def test_no_normalizer_means_texts_as_they_are() -> None:
    assert forms_of(Tokenizer(models.BPE())) == ()


def test_forms_by_name() -> None:
    steps = [normalizers.NFC(), normalizers.Lowercase(), normalizers.StripAccents(), normalizers.BertNormalizer()]
    assert names(normalizers.Sequence(steps)) == ["nfc", "lowercase", "strip_accents", "bert_normalizer"]
    assert names(normalizers.Sequence([normalizers.Sequence([normalizers.NFD()])])) == ["nfd"]


def test_what_only_serves_the_vocabularys_spelling_is_no_form() -> None:
    space = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    back = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    assert names(normalizers.Sequence(space), back) == []
    assert names(normalizers.Replace(" ", "_"), back) == ["replace"]
    assert names(normalizers.Replace(" ", "\u2581"), decoders.Metaspace()) == []
    assert names(normalizers.Sequence([normalizers.ByteLevel(), normalizers.Strip()])) == []


def test_runs_of_spaces_made_one() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    assert TextNormalizer(forms_of(tokenizer))("a   b  c d") == "a b c d"


def test_berts_spaces_around_han_are_left_out() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.BertNormalizer()
    assert TextNormalizer(forms_of(tokenizer))("ÉTÉ 東京\x00\u2003x") == "ete 東京 x"


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_nfc_is_what_the_tokenizers_normalizer_makes(text: str) -> None:
    assert TextNormalizer([NFC])(text) == normalizers.NFC().normalize_str(text)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["nfc", "nfkc", "lowercase"]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_step_changes_the_result(text: str, name: str) -> None:
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


def test_no_forms_change_nothing() -> None:
    assert TextNormalizer([])("e\u0301 A ") == "e\u0301 A "


def test_a_form_as_a_tokenizer_json_has_it() -> None:
    serialized = json.dumps({"type": "Replace", "pattern": {"String": "``"}, "content": '"'})
    assert form_named(serialized) == TextForm(serialized)
    assert TextNormalizer([form_named(serialized)])("``a``") == '"a"'


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="no form 'nfx'; there are nfc, nfd, nfkc, nfkd, lowercase, strip_accents"):
        form_named("nfx")
