"""Every kept example's tokens spell its text exactly; what is not exact is dropped by name."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.byte_view import byte_view
from alm_pipeline.tokenization.encoding import ByteEncoder, Dropped, EncodedExample, check_vocabulary
from storage.errors import UserError
from storage.schemas import TokenKind
from tests.tiny import CHATML, byte_level_tokenizer, sentencepiece_tokenizer

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
ENCODERS = {"byte_level": ByteEncoder(byte_level_tokenizer()), "sentencepiece": ByteEncoder(sentencepiece_tokenizer())}
NASTY = [
    "e\u0301",
    "\u0327\u0301",
    "👩‍👩‍👧",
    "🇩🇪",
    "\ue000",
    "\U0010ffff",
    "\x00",
    "\x07",
    "\x7f",
    "\x85",
    "\u200b",
    "\ufeff",
    "\ufffd",
    "\r\n",
    "\r",
    "\n\n",
    "\t",
    " ",
    "  ",
    " " * 9,
    "\u3000",
    "<|im_end|>",
    "<|endoftext|>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<pad>",
    "<0x0A>",
    "\u2581",
    "\u2581\u2581",
    "Ġ",
    "東京",
    "the",
    "12",
]
characters = st.characters(exclude_categories=["Cs"])
texts = st.lists(st.sampled_from(NASTY) | st.text(characters, max_size=4), max_size=10).map("".join)


def rebuilt(tokenizer: PreTrainedTokenizerFast, change: dict[str, Any], template: str | None = None) -> ByteEncoder:
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | change
    backend = Tokenizer.from_str(json.dumps(state))
    return ByteEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template))


def dummy_prefix(template: str | None = None) -> ByteEncoder:
    """As Llama 2's: U+2581 before every stretch of text, and for every space."""
    vocabulary = ["<unk>", "<s>", "</s>", *BYTE_PIECES, "\u2581", "\u2581Hi", *"Hiasername|", "\u2581\u2581"]
    vocabulary += ["\u2581H"]
    ids = {token: id_ for id_, token in enumerate(dict.fromkeys(vocabulary))}
    merges = [("\u2581", "\u2581"), ("\u2581", "H"), ("\u2581H", "i")]
    backend = Tokenizer(models.BPE(ids, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return ByteEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template))


def encoded(encoder: ByteEncoder, text: str) -> EncodedExample:
    row = encoder.encode([text])[0]
    assert isinstance(row, EncodedExample)
    return row


def conversation(encoder: ByteEncoder, *contents: str) -> EncodedExample | Dropped:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return encoder.encode_conversations([messages])[0]


def kept(encoder: ByteEncoder, *contents: str) -> EncodedExample:
    row = conversation(encoder, *contents)
    assert isinstance(row, EncodedExample)
    assert row.byte_lengths.sum() == len("".join(contents).encode())
    return row


def tokens_of(encoder: ByteEncoder, row: EncodedExample) -> list[str]:
    return list(encoder.tokenizer.convert_ids_to_tokens(row.token_ids.tolist()))


def kind_of(encoder: ByteEncoder, row: EncodedExample) -> list[tuple[str, str]]:
    names = [TokenKind(kind).name for kind in row.kinds.tolist()]
    return list(zip(tokens_of(encoder, row), names, strict=True))


def assert_exact(encoder: ByteEncoder, text: str, row: EncodedExample) -> None:
    content = text.encode()
    special = encoder.view.special[row.token_ids]
    assert row.byte_lengths.sum() == len(content)
    assert encoder.view.spell(row.token_ids[~special]) == content
    ends = np.cumsum(row.byte_lengths)
    for id_, length, end, kind in zip(row.token_ids, row.byte_lengths, ends, row.kinds, strict=True):
        assert kind == (TokenKind.SPECIAL if encoder.view.special[id_] else TokenKind.CONTENT)
        assert content[end - length : end] == (b"" if encoder.view.special[id_] else encoder.view.spelling[id_])


@given(texts)
@example("<|im_end|> <bos>")
@example("")
@settings(max_examples=200, deadline=None, derandomize=True)
def test_byte_level_keeps_every_text(text: str) -> None:
    assert_exact(ENCODERS["byte_level"], text, encoded(ENCODERS["byte_level"], text))


@given(texts)
@example("<|im_end|> <bos><0x0A>")
@example("\u2581")
@settings(max_examples=200, deadline=None, derandomize=True)
def test_sentencepiece_drops_only_what_holds_its_space(text: str) -> None:
    encoder = ENCODERS["sentencepiece"]
    (row,) = encoder.encode([text])
    if "\u2581" in text:
        assert row is Dropped.NOT_ROUND_TRIP
    else:
        assert isinstance(row, EncodedExample)
        assert_exact(encoder, text, row)


@given(st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_conversations_are_exact_or_dropped(contents: list[str]) -> None:
    for encoder in ENCODERS.values():
        row = conversation(encoder, *contents)
        if isinstance(row, EncodedExample):
            content = "".join(contents).encode()
            assert row.byte_lengths.sum() == len(content)
            ends = np.cumsum(row.byte_lengths)
            for id_, length, end, kind in zip(row.token_ids, row.byte_lengths, ends, row.kinds, strict=True):
                assert (length > 0) == (kind in (TokenKind.CONTENT, TokenKind.MIXED))
                assert content[end - length : end] in encoder.view.spelling[id_]
                if kind == TokenKind.CONTENT:
                    assert content[end - length : end] == encoder.view.spelling[id_]


def test_literals_of_special_tokens_are_text() -> None:
    encoder = ENCODERS["byte_level"]
    row = encoded(encoder, "a<|im_end|>")
    assert not encoder.view.special[row.token_ids].any()


def test_begin_of_text_covers_no_byte() -> None:
    encoder = ENCODERS["sentencepiece"]
    row = encoded(encoder, "The fox")
    assert tokens_of(encoder, row)[0] == "<bos>"
    assert row.byte_lengths[0] == 0
    assert row.kinds[0] == TokenKind.SPECIAL
    assert [row.token_ids.dtype, row.byte_lengths.dtype, row.kinds.dtype] == [np.int32, np.int32, np.uint8]


@pytest.mark.parametrize(
    ("text", "tokens", "lengths"),
    [
        ("Hi", ["<s>", "\u2581Hi"], [0, 2]),
        ("as", ["<s>", "\u2581", "a", "s"], [0, 0, 1, 1]),
        (" Hi", ["<s>", "\u2581\u2581", "H", "i"], [0, 1, 1, 1]),
        ("Hi Hi", ["<s>", "\u2581Hi", "\u2581Hi"], [0, 2, 3]),
    ],
)
def test_a_dummy_prefix_is_no_byte_of_the_text(text: str, tokens: list[str], lengths: list[int]) -> None:
    encoder = dummy_prefix()
    row = encoded(encoder, text)
    assert tokens_of(encoder, row) == tokens
    assert row.byte_lengths.tolist() == lengths


def test_dummy_prefixes_in_a_conversation() -> None:
    template = "{% for m in messages %}<s>{{ m['role'] }}|{{ m['content'] }}</s>{% endfor %}"
    encoder = dummy_prefix(template)
    row = kept(encoder, "Hi", " as")
    assert kind_of(encoder, row)[:2] == [("<s>", "SPECIAL"), ("\u2581", "TEMPLATE")]
    bare = dummy_prefix("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")
    row = kept(bare, "Hi", " Hi", "  ")
    tokens = "<s> \u2581Hi </s> <s> \u2581\u2581 H i </s> <s> \u2581\u2581 \u2581 </s>"
    assert tokens_of(bare, row) == tokens.split()
    assert row.byte_lengths.tolist() == [0, 2, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0]
    assert conversation(bare, "Hi\u2581") is Dropped.NOT_ROUND_TRIP


def test_byte_level_prefix_space(byte_level: PreTrainedTokenizerFast) -> None:
    pre = {"pre_tokenizer": json.loads(pre_tokenizers.ByteLevel(add_prefix_space=True).__getstate__())}
    row = encoded(rebuilt(byte_level, pre), "The fox")
    assert row.byte_lengths.sum() == 7


def test_a_normalizer_that_changes_the_text(byte_level: PreTrainedTokenizerFast) -> None:
    encoder = rebuilt(byte_level, {"normalizer": {"type": "NFC"}}, CHATML)
    assert encoder.encode(["e\u0301", "\u00e9"])[0] is Dropped.NOT_ROUND_TRIP
    assert_exact(encoder, "\u00e9", encoded(encoder, "\u00e9"))
    assert conversation(encoder, "e\u0301") is Dropped.NOT_ROUND_TRIP
    assert Dropped.NOT_ROUND_TRIP == "tokens_spell_other_bytes"


def test_a_vocabulary_without_some_bytes(byte_level: PreTrainedTokenizerFast) -> None:
    state = json.loads(byte_level.backend_tokenizer.to_str())["model"]
    lost = state["vocab"].pop("ć")  # byte 7
    state["vocab"]["fill"] = lost
    encoder = rebuilt(byte_level, {"model": state})
    assert encoder.encode(["a\x07b", "ab"])[0] is Dropped.NOT_ROUND_TRIP
    assert_exact(encoder, "ab", encoded(encoder, "ab"))


def test_an_unknown_token_is_dropped(sentencepiece: PreTrainedTokenizerFast) -> None:
    state = json.loads(sentencepiece.backend_tokenizer.to_str())["model"]
    encoder = rebuilt(sentencepiece, {"model": state | {"byte_fallback": False}})
    assert encoder.encode(["\u6771"]) == [Dropped.NOT_ROUND_TRIP]


def test_a_special_token_that_swallows_white_space(byte_level: PreTrainedTokenizerFast) -> None:
    added = json.loads(byte_level.backend_tokenizer.to_str())["added_tokens"]
    encoder = rebuilt(byte_level, {"added_tokens": [token | {"rstrip": True} for token in added]}, CHATML)
    assert conversation(encoder, "Hi") is Dropped.NOT_ROUND_TRIP


def test_max_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    length = len(encoded(ENCODERS["byte_level"], "jumps over the dog").token_ids)
    for limit, dropped in ((length, False), (length - 1, True)):
        (row,) = ByteEncoder(byte_level_tokenizer(), limit).encode(["jumps over the dog"])
        assert (row is Dropped.OVER_CONTEXT) == dropped
    assert conversation(ByteEncoder(byte_level_tokenizer(), 3), "Hi") is Dropped.OVER_CONTEXT


def test_saved_truncation_and_padding_are_ignored() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    rows = ByteEncoder(tokenizer).encode(["jumps over the lazy dog", "a"])
    plain = ENCODERS["byte_level"].encode(["jumps over the lazy dog", "a"])
    for row, expected in zip(rows, plain, strict=True):
        assert isinstance(row, EncodedExample)
        assert isinstance(expected, EncodedExample)
        assert row.token_ids.tolist() == expected.token_ids.tolist()


def test_texts_and_conversations_in_turn() -> None:
    encoder = ByteEncoder(byte_level_tokenizer())
    first = encoded(encoder, "<|im_end|>")
    kept(encoder, "Hi")
    assert encoded(encoder, "<|im_end|>").token_ids.tolist() == first.token_ids.tolist()


def test_no_texts() -> None:
    for encoder in ENCODERS.values():
        assert encoder.encode([]) == []
        assert encoder.encode_conversations([]) == []


def test_kinds_in_a_conversation() -> None:
    encoder = ENCODERS["byte_level"]
    pairs = kind_of(encoder, kept(encoder, "Hi"))
    assert pairs[0] == ("<|im_start|>", "SPECIAL")
    assert pairs[-2:] == [("<|im_end|>", "SPECIAL"), ("Ċ", "TEMPLATE")]
    assert "".join(token for token, kind in pairs if kind == "CONTENT") == "Hi"
    assert "".join(token for token, kind in pairs if kind == "TEMPLATE") == "userĊĊ"


def test_the_tokenizers_begin_of_text_is_not_added_to_the_templates() -> None:
    encoder = ENCODERS["sentencepiece"]
    assert tokens_of(encoder, kept(encoder, "Hi")).count("<bos>") == 1


def test_a_content_that_spells_a_special_token_is_mixed() -> None:
    encoder = ENCODERS["byte_level"]
    row = kept(encoder, "a<|im_end|>b")
    special = [
        (kind, length)
        for (token, kind), length in zip(kind_of(encoder, row), row.byte_lengths.tolist(), strict=True)
        if token == "<|im_end|>"
    ]
    assert special == [("MIXED", len("<|im_end|>")), ("SPECIAL", 0)]


def test_a_token_over_content_and_template_is_mixed(sentencepiece: PreTrainedTokenizerFast) -> None:
    encoder = rebuilt(sentencepiece, {}, "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}{% endfor %}")
    row = kept(encoder, "\nHi")
    at = tokens_of(encoder, row).index("\n\n")
    assert (row.kinds[at], row.byte_lengths[at]) == (TokenKind.MIXED, 1)


def test_template_that_changes_a_content_drops_that_conversation() -> None:
    assert conversation(ENCODERS["sentencepiece"], "Hi ") is Dropped.TEMPLATE_CHANGES_CONTENT


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
def test_check_vocabulary(family: str) -> None:
    view = byte_view(ENCODERS[family].tokenizer.backend_tokenizer)
    check_vocabulary(view, view.size, "a model")
    check_vocabulary(view, view.size + 64, "a model")
    with pytest.raises(UserError, match=rf"a model: .* highest id is {view.size - 1}, .* has {view.size - 1} rows"):
        check_vocabulary(view, view.size - 1, "a model")


def test_a_conversation_that_the_template_refuses_is_dropped_alone() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    )
    plain = [{"role": "user", "content": "hello"}]
    with_system = [{"role": "system", "content": "be brief"}, *plain]
    kept, dropped = ByteEncoder(tokenizer).encode_conversations([plain, with_system])
    assert isinstance(kept, EncodedExample)
    assert dropped is Dropped.TEMPLATE_REFUSES
