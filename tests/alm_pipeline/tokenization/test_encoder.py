"""The tokens of every example spell its text exactly, or it is dropped for a named reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder, Dropped, load_spelling_kernel
from alm_pipeline.tokenization.rows import EncodedExample
from alm_pipeline.tokenization.stage import tokens_dataset
from alm_pipeline.vocabulary.byte_view import byte_view, check_vocabulary
from storage.errors import UserError
from storage.schemas import TokenKind
from tests.corpora import text_examples
from tests.tiny import CHATML, byte_level_tokenizer, sentencepiece_tokenizer

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
ENCODERS = {
    "byte_level": ByteEncoder(LoadedTokenizer.of(byte_level_tokenizer())),
    "sentencepiece": ByteEncoder(LoadedTokenizer.of(sentencepiece_tokenizer())),
}
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
    return ByteEncoder(LoadedTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)))


def dummy_prefix(template: str | None = None) -> ByteEncoder:
    """Return a tokenizer like Llama 2's: U+2581 before every stretch of text, and for every space."""
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
    return ByteEncoder(LoadedTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)))


def encoded(encoder: ByteEncoder, text: str) -> EncodedExample:
    row = encoder.encode([text]).example(0)
    assert isinstance(row, EncodedExample)
    return row


def reason(encoder: ByteEncoder, text: str) -> str | None:
    """Return why a text has no tokens, encoded among others."""
    return encoder.encode(["the fox", text, "a"]).dropped[1]


def conversation(encoder: ByteEncoder, *contents: str) -> EncodedExample | str:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return encoder.encode_conversations([messages]).example(0)


def kept(encoder: ByteEncoder, *contents: str) -> EncodedExample:
    row = conversation(encoder, *contents)
    assert isinstance(row, EncodedExample)
    assert row.byte_lengths.sum() == len("".join(contents).encode())
    return row


def tokens_of(encoder: ByteEncoder, row: EncodedExample) -> list[str]:
    return list(encoder.tokenizer.fast.convert_ids_to_tokens(row.token_ids.tolist()))


def kind_of(encoder: ByteEncoder, row: EncodedExample) -> list[tuple[str, str]]:
    names = [TokenKind(kind).name for kind in row.kinds.tolist()]
    return list(zip(tokens_of(encoder, row), names, strict=True))


def assert_exact(encoder: ByteEncoder, text: str, row: EncodedExample) -> None:
    content = text.encode()
    special = encoder.view.special[row.token_ids]
    assert row.byte_lengths.sum() == len(content)
    assert row.uncovered.at.tolist() == []
    assert encoder.view.spell(row.token_ids[~special]) == content
    assert (row.turns == -1).all()
    ends = np.cumsum(row.byte_lengths)
    for id_, length, end, kind in zip(row.token_ids, row.byte_lengths, ends, row.kinds, strict=True):
        assert kind == (TokenKind.BEGIN_OF_TEXT if encoder.view.special[id_] else TokenKind.CONTENT)
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
def test_sentencepiece_drops_only_texts_with_its_stand_in_for_a_space(text: str) -> None:
    encoder = ENCODERS["sentencepiece"]
    if "\u2581" in text:
        assert reason(encoder, text) is Dropped.STAND_IN
    else:
        assert_exact(encoder, text, encoded(encoder, text))


@given(st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_conversations_are_exact_or_dropped(contents: list[str]) -> None:
    for encoder in ENCODERS.values():
        row = conversation(encoder, *contents)
        if isinstance(row, EncodedExample):
            content = "".join(contents).encode()
            assert row.byte_lengths.sum() + row.uncovered.bytes.sum() == len(content)
            assert row.roles == ("user", "assistant", "user")[: len(contents)]
            assert row.turn_bytes == tuple(len(content.encode()) for content in contents)
            ends = np.cumsum(np.insert(row.byte_lengths, 0, 0))[1:]
            for at, size in zip(row.uncovered.at, row.uncovered.bytes, strict=True):
                ends[at:] += size
            for id_, length, end, kind in zip(row.token_ids, row.byte_lengths, ends, row.kinds, strict=True):
                assert (length > 0) == (kind in (TokenKind.CONTENT, TokenKind.MIXED))
                assert content[end - length : end] in encoder.view.spelling[id_]
                if kind == TokenKind.CONTENT:
                    assert content[end - length : end] == encoder.view.spelling[id_]


def test_literals_of_special_tokens_are_text() -> None:
    encoder = ENCODERS["byte_level"]
    row = encoded(encoder, "a<|im_end|>")
    assert not encoder.view.special[row.token_ids].any()


def with_special_pieces(*, special: bool, template: str | None = None) -> ByteEncoder:
    """Return a tokenizer like those of SentencePiece's type Unigram: `<s>` and `</s>` are pieces of its model."""
    pieces = ["<unk>", "<s>", "</s>", *BYTE_PIECES, "\u2581", *"<s/>ab|useritn", "\u2581a", "ab"]
    scores = [(piece, 0.0 if piece in ("<s>", "</s>") else -1.0 - k) for k, piece in enumerate(dict.fromkeys(pieces))]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if special:
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return ByteEncoder(LoadedTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)))


@pytest.mark.parametrize("text", ["</s>", "a </s> b", "<s><s>", "ab<s", "s> b", "<unk>", "a"])
def test_a_special_token_that_is_a_piece_is_never_read_as_one_in_a_text(text: str) -> None:
    encoder = with_special_pieces(special=True)
    assert encoder.tokenizer.spells_special
    if "<s>" in text or "</s>" in text:
        assert reason(encoder, text) is Dropped.SPECIAL_LITERAL
    elif text == "<unk>":
        assert reason(encoder, text) is Dropped.UNKNOWN_TOKEN
    else:
        assert not encoder.view.special[encoded(encoder, text).token_ids].any()


def test_nor_in_a_message() -> None:
    encoder = with_special_pieces(special=True, template="{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")
    tokens = [token for token, _ in kind_of(encoder, kept(encoder, "a", "ab"))]
    assert tokens == ["<s>", "a", "</s>", "<s>", "ab", "</s>"]
    assert conversation(encoder, "a", "b</s>") is Dropped.SPECIAL_LITERAL
    assert conversation(encoder, "a<s>", "b") is Dropped.SPECIAL_LITERAL


def test_only_tokens_that_such_a_tokenizer_makes_have_another_name_for_it(tmp_path: Path) -> None:
    examples = text_examples(tmp_path, [["a"]])
    tokenizers = [with_special_pieces(special=special).tokenizer for special in (True, False)]
    identities = [tokens_dataset(examples, tokenizer, None).identity for tokenizer in tokenizers]
    assert ["special_literals" in identity for identity in identities] == [True, False]


def test_pieces_that_are_not_special_are_text() -> None:
    encoder = with_special_pieces(special=False)
    assert not encoder.tokenizer.spells_special
    assert tokens_of(encoder, encoded(encoder, "a</s>")) == ["a", "</s>"]


def test_other_tokenizers_read_literals_as_text() -> None:
    assert not any(encoder.tokenizer.spells_special for encoder in [*ENCODERS.values(), dummy_prefix()])


def test_begin_of_text_covers_no_byte() -> None:
    encoder = ENCODERS["sentencepiece"]
    row = encoded(encoder, "The fox")
    assert tokens_of(encoder, row)[0] == "<bos>"
    assert row.byte_lengths[0] == 0
    assert row.kinds[0] == TokenKind.BEGIN_OF_TEXT
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
def test_a_dummy_prefix_covers_no_byte_of_the_text(text: str, tokens: list[str], lengths: list[int]) -> None:
    encoder = dummy_prefix()
    row = encoded(encoder, text)
    assert tokens_of(encoder, row) == tokens
    assert row.byte_lengths.tolist() == lengths


def test_dummy_prefixes_in_a_conversation() -> None:
    template = "{% for m in messages %}<s>{{ m['role'] }}|{{ m['content'] }}</s>{% endfor %}"
    encoder = dummy_prefix(template)
    row = kept(encoder, "Hi", " as")
    assert [token for token, _ in kind_of(encoder, row)[:2]] == ["<s>", "\u2581"]
    bare = dummy_prefix("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")
    row = kept(bare, "Hi", " Hi", "  ")
    tokens = "<s> \u2581Hi </s> <s> \u2581\u2581 H i </s> <s> \u2581\u2581 \u2581 </s>"
    assert tokens_of(bare, row) == tokens.split()
    assert row.byte_lengths.tolist() == [0, 2, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0]
    assert conversation(bare, "Hi\u2581") is Dropped.STAND_IN


def test_byte_level_prefix_space(byte_level: PreTrainedTokenizerFast) -> None:
    pre = {"pre_tokenizer": json.loads(pre_tokenizers.ByteLevel(add_prefix_space=True).__getstate__())}
    row = encoded(rebuilt(byte_level, pre), "The fox")
    assert row.byte_lengths.sum() == 7


def test_a_normalizer_that_changes_the_text(byte_level: PreTrainedTokenizerFast) -> None:
    encoder = rebuilt(byte_level, {"normalizer": {"type": "NFC"}}, CHATML)
    assert reason(encoder, "e\u0301") == "changed_by_nfc"
    assert_exact(encoder, "\u00e9", encoded(encoder, "\u00e9"))
    assert conversation(encoder, "e\u0301") == "changed_by_nfc"


def test_the_first_step_of_a_normalizer_that_changes_the_text_is_named(byte_level: PreTrainedTokenizerFast) -> None:
    steps = [{"type": "NFC"}, {"type": "Lowercase"}, {"type": "Replace", "pattern": {"String": "x"}, "content": "y"}]
    encoder = rebuilt(byte_level, {"normalizer": {"type": "Sequence", "normalizers": steps}})
    assert [reason(encoder, text) for text in ("e\u0301", "A", "ax", "Ax")] == [
        "changed_by_nfc",
        "changed_by_lowercase",
        "changed_by_replace",
        "changed_by_lowercase",
    ]


def test_a_vocabulary_without_some_bytes(byte_level: PreTrainedTokenizerFast) -> None:
    state = json.loads(byte_level.backend_tokenizer.to_str())["model"]
    lost = state["vocab"].pop("ć")  # byte 7
    state["vocab"]["fill"] = lost
    encoder = rebuilt(byte_level, {"model": state})
    assert reason(encoder, "a\x07b") is Dropped.NOT_ROUND_TRIP
    assert Dropped.NOT_ROUND_TRIP == "tokens_spell_other_bytes"
    assert_exact(encoder, "ab", encoded(encoder, "ab"))


def test_an_unknown_token_is_dropped(sentencepiece: PreTrainedTokenizerFast) -> None:
    state = json.loads(sentencepiece.backend_tokenizer.to_str())["model"]
    bare = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    encoder = rebuilt(sentencepiece, {"model": state | {"byte_fallback": False}}, bare)
    assert reason(encoder, "\u6771") is Dropped.UNKNOWN_TOKEN
    assert conversation(encoder, "\u6771") is Dropped.UNKNOWN_TOKEN
    # its spelling is the text, but what it stands for is unknown all the same
    assert reason(encoder, "<unk>\u6771") is Dropped.UNKNOWN_TOKEN


def test_a_special_token_that_absorbs_white_space(byte_level: PreTrainedTokenizerFast) -> None:
    added = json.loads(byte_level.backend_tokenizer.to_str())["added_tokens"]
    encoder = rebuilt(byte_level, {"added_tokens": [token | {"rstrip": True} for token in added]}, CHATML)
    row = kept(encoder, "Hi", " a\n")
    assert "Ċ" not in [token for token, kind in kind_of(encoder, row) if kind == "TEMPLATE"]
    assert row.byte_lengths.sum() == 5
    bare = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    encoder = rebuilt(byte_level, {"added_tokens": [token | {"rstrip": True} for token in added]}, bare)
    row = kept(encoder, "  Hi")
    # the white space belongs to the content, so the token is not only the template's
    assert (row.kinds[0], row.byte_lengths[0]) == (TokenKind.MIXED, 2)


def test_max_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    length = len(encoded(ENCODERS["byte_level"], "jumps over the dog").token_ids)
    for limit, dropped in ((length, False), (length - 1, True)):
        row = ByteEncoder(LoadedTokenizer.of(byte_level_tokenizer()), limit).encode(["jumps over the dog"]).example(0)
        assert (row is Dropped.OVER_CONTEXT) == dropped
    assert conversation(ByteEncoder(LoadedTokenizer.of(byte_level_tokenizer()), 3), "Hi") is Dropped.OVER_CONTEXT


def test_saved_truncation_and_padding_are_ignored() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    rows = ByteEncoder(LoadedTokenizer.of(tokenizer)).encode(["jumps over the lazy dog", "a"])
    plain = ENCODERS["byte_level"].encode(["jumps over the lazy dog", "a"])
    assert rows.token_ids.tolist() == plain.token_ids.tolist()
    assert rows.offsets.tolist() == plain.offsets.tolist()


def test_texts_and_conversations_alternately() -> None:
    encoder = ByteEncoder(LoadedTokenizer.of(byte_level_tokenizer()))
    first = encoded(encoder, "<|im_end|>")
    kept(encoder, "Hi")
    assert encoded(encoder, "<|im_end|>").token_ids.tolist() == first.token_ids.tolist()


def test_no_texts() -> None:
    for encoder in ENCODERS.values():
        assert len(encoder.encode([])) == 0
        assert len(encoder.encode_conversations([])) == 0


def test_kinds_in_a_conversation() -> None:
    encoder = ENCODERS["byte_level"]
    pairs = kind_of(encoder, kept(encoder, "Hi"))
    assert pairs[0] == ("<|im_start|>", "START_OF_TURN")
    assert pairs[-2:] == [("<|im_end|>", "END_OF_TURN"), ("Ċ", "TEMPLATE")]
    for kind, text in (("CONTENT", "Hi"), ("ROLE", "user"), ("END_OF_HEADER", "Ċ")):
        assert "".join(token for token, its_kind in pairs if its_kind == kind) == text


def test_the_tokenizers_begin_of_text_is_not_added_to_the_templates() -> None:
    encoder = ENCODERS["sentencepiece"]
    assert tokens_of(encoder, kept(encoder, "Hi")).count("<bos>") == 1


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
def test_special_tokens_that_a_content_spells_are_text(family: str) -> None:
    encoder = ENCODERS[family]
    literals = [encoder.view.spelling[id_].decode() for id_ in np.flatnonzero(encoder.view.special)]
    content = "a" + "b".join(literals) + literals[0]
    row = kept(encoder, content, "c " + literals[-1] + " d")
    inside = row.byte_lengths > 0
    assert not encoder.view.special[row.token_ids[inside]].any()
    assert encoder.view.special[row.token_ids[~inside]].any()
    # the rest equals a conversation without them
    plain = kept(encoder, "a", "c")
    scaffold = [token for token, kind in kind_of(encoder, row) if kind != "CONTENT"]
    assert scaffold == [token for token, kind in kind_of(encoder, plain) if kind != "CONTENT"]
    assert row.token_ids[row.turns == 0][inside[row.turns == 0]].tolist() == own_ids(encoder, content)


def own_ids(encoder: ByteEncoder, text: str) -> list[int]:
    row = encoded(encoder, text)
    return list(row.token_ids[row.byte_lengths > 0].tolist())


def test_a_token_over_content_and_template_is_mixed(sentencepiece: PreTrainedTokenizerFast) -> None:
    encoder = rebuilt(sentencepiece, {}, "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}{% endfor %}")
    row = kept(encoder, "\nHi")
    at = tokens_of(encoder, row).index("\n\n")
    assert (row.kinds[at], row.byte_lengths[at]) == (TokenKind.MIXED, 1)


def test_template_that_changes_a_content_drops_that_conversation() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    assert conversation(ByteEncoder(LoadedTokenizer.of(tokenizer)), "Hi ") is Dropped.TEMPLATE_CHANGES_CONTENT


def test_no_token_covers_what_a_template_trims() -> None:
    encoder = ENCODERS["sentencepiece"]
    row = conversation(encoder, " Hi \n", "the fox")
    assert isinstance(row, EncodedExample)
    assert row.byte_lengths.sum() == 9
    assert row.uncovered.bytes.tolist() == [1, 2]
    names = [kind for _, kind in kind_of(encoder, row)]
    first, last = names.index("CONTENT"), names.index("END_OF_TURN")
    assert row.uncovered.at.tolist() == [first, last]


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
def test_check_vocabulary(family: str) -> None:
    view = byte_view(ENCODERS[family].tokenizer.fast.backend_tokenizer)
    check_vocabulary(view, view.size, "a model")
    check_vocabulary(view, view.size + 64, "a model")
    with pytest.raises(UserError, match=rf"a model: .* highest id is {view.size - 1}, .* has {view.size - 1} rows"):
        check_vocabulary(view, view.size - 1, "a model")


def test_only_the_conversation_that_the_template_refuses_is_dropped() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    )
    plain = [{"role": "user", "content": "hello"}]
    with_system = [{"role": "system", "content": "be brief"}, *plain]
    batch = ByteEncoder(LoadedTokenizer.of(tokenizer)).encode_conversations([plain, with_system, plain])
    assert batch.dropped == [None, Dropped.TEMPLATE_REFUSES, None]
    assert len(batch.token_ids) == 2 * len(batch.token_ids[batch.offsets[2] :])


def bert(lowercase: bool = False) -> ByteEncoder:
    """Return a WordPiece tokenizer like BERT's: no token covers white space."""
    words = ["[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##s", "the", ".", "P", "e", "##e"]
    backend = Tokenizer(models.WordPiece({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    backend.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    return ByteEncoder(LoadedTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=backend)))


def test_word_pieces() -> None:
    encoder = bert()
    row = encoded(encoder, " the playing. ")
    assert tokens_of(encoder, row) == ["[CLS]", "the", "play", "##ing", ".", "[SEP]"]
    assert row.byte_lengths.tolist() == [0, 3, 4, 3, 1, 0]
    assert row.kinds.tolist() == [TokenKind.BEGIN_OF_TEXT, 0, 0, 0, 0, TokenKind.END_OF_TEXT]
    assert list(zip(row.uncovered.at.tolist(), row.uncovered.bytes.tolist(), strict=True)) == [(1, 1), (2, 1), (5, 1)]
    assert reason(encoder, "the xylophone") is Dropped.UNKNOWN_TOKEN
    assert reason(encoder, "the\x07") == "changed_by_bert_normalizer"
    assert reason(bert(lowercase=True), "\u00c9e") == "changed_by_bert_normalizer"
    assert tokens_of(encoder, encoded(bert(lowercase=True), "ee")) == ["[CLS]", "e", "##e", "[SEP]"]


def unigram(byte_fallback: bool = True) -> ByteEncoder:
    pieces = [("<unk>", 0.0), *((piece, -9.0) for piece in BYTE_PIECES)]
    pieces += [("\u2581", -2.0), ("\u2581the", -1.0), ("a", -3.0), ("\u00e9", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    backend.add_special_tokens([AddedToken("<s>", normalized=False)])
    template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    return ByteEncoder(LoadedTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)))


def test_unigram_with_byte_fallback() -> None:
    encoder = unigram()
    row = encoded(encoder, "the a\u6771 \u00e9")
    expected = ["\u2581the", "\u2581", "a", "<0xE6>", "<0x9D>", "<0xB1>", "\u2581", "\u00e9"]
    assert tokens_of(encoder, row) == expected
    assert row.byte_lengths.tolist() == [3, 1, 1, 1, 1, 1, 1, 2]
    assert reason(unigram(byte_fallback=False), "a\u6771") is Dropped.UNKNOWN_TOKEN


def test_a_dummy_prefix_at_the_start_of_the_text_only() -> None:
    encoder = unigram()
    literal = kept(encoder, "the<s> a", "the")
    assert tokens_of(encoder, literal)[:2] == ["<s>", "<0x74>"]
    row = kept(encoder, "the", "the a")
    assert tokens_of(encoder, row)[0] == "<s>"
    assert row.byte_lengths.sum() == 8


def test_special_tokens_that_are_not_flagged_as_such() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "<s>": 1, "</s>": 2}, []))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    row = encoded(ByteEncoder(LoadedTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=backend))), "aa")
    assert row.token_ids.tolist() == [1, 0, 0, 2]
    assert row.byte_lengths.tolist() == [0, 1, 1, 0]
    assert row.kinds.tolist() == [TokenKind.BEGIN_OF_TEXT, 0, 0, TokenKind.END_OF_TEXT]


def test_bpe_dropout_is_switched_off(byte_level: PreTrainedTokenizerFast) -> None:
    state = json.loads(byte_level.backend_tokenizer.to_str())["model"]
    encoder = rebuilt(byte_level, {"model": state | {"dropout": 0.9}})
    assert encoded(encoder, "the quick fox").token_ids.tolist() == own_ids(ENCODERS["byte_level"], "the quick fox")


def test_what_is_loaded_before_the_first_text_is_what_it_needs(byte_level: PreTrainedTokenizerFast) -> None:
    from alm_pipeline.tokenization.spelling_kernel import spell_texts

    load_spelling_kernel()
    loaded = list(spell_texts.signatures)
    ByteEncoder(LoadedTokenizer.of(byte_level)).encode(["The quick brown fox"])
    assert spell_texts.signatures == loaded
