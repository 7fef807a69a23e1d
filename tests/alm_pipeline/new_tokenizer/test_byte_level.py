"""A byte-level conversion equals its source, except that the text between control tokens is encoded as bytes."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.new_tokenizer.byte_level import BYTES, byte_level_tokenizer, write_byte_level
from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS, long_text, random_texts
from alm_pipeline.vocabulary.byte_view import byte_view, byte_vocabulary
from storage.errors import UserError
from tests.tiny import CHATML, sentencepiece_tokenizer

CONVERSATION = [
    {"role": "user", "content": "Was ist 東京?\n\n  e\u0301"},
    {"role": "assistant", "content": "\x00🙂 <0x41>"},
]
FAMILIES = ["byte_level", "sentencepiece"]


@pytest.fixture(params=FAMILIES)
def source(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


@pytest.fixture
def converted(source: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(source)


def source_with(
    added: list[AddedToken], template: str | None = None, processor: processors.PostProcessor | None = None
) -> PreTrainedTokenizerFast:
    """Return a small source with a vocabulary of letters and these added tokens."""
    backend = Tokenizer(models.BPE({letter: id_ for id_, letter in enumerate(byte_vocabulary())}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(added)
    if processor is not None:
        backend.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)


def special(literal: str) -> AddedToken:
    return AddedToken(literal, special=True, normalized=False)


def literals(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the added tokens by id."""
    return [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]


def text_bytes(tokenizer: PreTrainedTokenizerFast, text: str) -> bytes:
    """Return the ids of a text without special tokens."""
    return bytes(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def framed(tokenizer: PreTrainedTokenizerFast, *texts: str) -> tuple[list[str], list[int]]:
    encoding = tokenizer.backend_tokenizer.encode(*texts)
    return encoding.tokens, encoding.type_ids


def test_an_id_is_its_byte(converted: PreTrainedTokenizerFast) -> None:
    view = byte_view(converted.backend_tokenizer)
    assert view.spelling[:BYTES] == tuple(bytes([byte]) for byte in range(BYTES))
    assert not view.special[:BYTES].any()
    assert [converted.decode([byte]) for byte in range(128)] == [chr(byte) for byte in range(128)]


@pytest.mark.parametrize("texts", [ADVERSARIAL_TEXTS, random_texts(1, 300)], ids=["collection", "random"])
def test_one_token_per_byte_and_exact_decoding(converted: PreTrainedTokenizerFast, texts: list[str]) -> None:
    for text in texts:
        assert text_bytes(converted, text) == text.encode()
        assert converted.decode(converted(text, add_special_tokens=False).input_ids) == text
        assert converted.decode(list(text.encode())) == text


def test_every_character(converted: PreTrainedTokenizerFast) -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)]))
    assert text_bytes(converted, text) == text.encode()
    assert converted.decode(list(text.encode())) == text


@pytest.mark.timeout(30)  # far more than linear time needs, and far less than any other
@pytest.mark.parametrize("text", [long_text(), "a" * 1_000_000, " " * 1_000_000], ids=["mixed", "a", "spaces"])
def test_a_long_text(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    assert text_bytes(byte_level_tokenizer(byte_level), text) == text.encode()


def test_parts_of_characters_are_replaced(converted: PreTrainedTokenizerFast) -> None:
    assert converted.decode([0x61, 0xE6, 0x9D, 0x62]) == "a\ufffdb"
    assert converted.decode([0xFF]) == "\ufffd"


def test_control_tokens_keep_their_order_and_flags(
    source: PreTrainedTokenizerFast, converted: PreTrainedTokenizerFast
) -> None:
    kept = [token for _, token in sorted(source.added_tokens_decoder.items()) if token.special]
    assert literals(converted) == [token.content for token in kept]
    assert (
        sorted(converted.added_tokens_decoder)
        == list(range(BYTES, BYTES + len(kept)))
        == list(range(BYTES, len(converted)))
    )
    assert all(token.special for token in converted.added_tokens_decoder.values())
    assert converted.special_tokens_map == source.special_tokens_map
    assert converted.all_special_tokens == source.all_special_tokens


def test_settings_are_those_of_the_source(source: PreTrainedTokenizerFast) -> None:
    source = load_copy(source)
    source.model_max_length, source.padding_side = 777, "left"
    source.add_special_tokens({"extra_special_tokens": ["<extra>"]})
    source._set_model_specific_special_tokens({"image_token": "<extra>"})
    converted = byte_level_tokenizer(source)
    assert (converted.model_max_length, converted.padding_side) == (777, "left")
    assert converted.extra_special_tokens == ["<extra>"]
    assert converted.special_tokens_map == source.special_tokens_map
    assert converted.image_token == "<extra>"
    assert converted.chat_template == source.chat_template


def load_copy(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tokenizer.chat_template,
        **tokenizer.special_tokens_map,
    )


def test_control_tokens_without_a_flag() -> None:
    plain = ["<｜User｜>", "<think>", "<table>", "\n\n", "\u2581\u2581", "0", "the"]
    added = [AddedToken(literal, normalized=False) for literal in plain]
    converted = byte_level_tokenizer(
        source_with(added, "<｜User｜>\n\n{{ messages[0]['content'] }}<think> \u2581\u2581")
    )
    assert literals(converted) == ["<｜User｜>", "<think>"]
    assert not any(token.special for token in converted.added_tokens_decoder.values())
    ids = converted("<｜User｜>\n\n<table>").input_ids
    assert ids == [BYTES, *b"\n\n<table>"]
    assert converted.decode(ids, skip_special_tokens=True) == "<｜User｜>\n\n<table>"


def test_control_tokens_that_a_template_assembles() -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    )
    added = [AddedToken(f"<|{role}|>") for role in ("system", "assistant", "user", "other")]
    assert literals(byte_level_tokenizer(source_with(added, template))) == ["<|assistant|>", "<|user|>"]


def test_several_templates() -> None:
    source = source_with([AddedToken("<plain>"), AddedToken("<tool>"), AddedToken("<none>")])
    source.chat_template = {"default": "<plain>", "tool_use": "<tool>"}
    converted = byte_level_tokenizer(source)
    assert literals(converted) == ["<plain>", "<tool>"]
    assert converted.chat_template == source.chat_template


def test_no_token_absorbs_white_space() -> None:
    converted = byte_level_tokenizer(source_with([AddedToken("<end>", special=True, lstrip=True, rstrip=True)]))
    assert converted("a <end>\nb").input_ids == [*b"a ", BYTES, *b"\nb"]


def test_a_control_token_that_is_a_letter_of_the_alphabet() -> None:
    with pytest.raises(UserError, match="special token '!' stands for a byte"):
        byte_level_tokenizer(source_with([special("!")]))


def test_neither_normalizer_nor_dummy_prefix_is_kept() -> None:
    source = load_copy(sentencepiece_tokenizer())
    source.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    text = "E\u0301 ﬁ ㎏\u2581"
    assert text_bytes(byte_level_tokenizer(source), text) == text.encode()


CLS, SEP = ("[CLS]", 257), ("[SEP]", 258)
TEMPLATE = processors.TemplateProcessing(single="[CLS] [CLS] $A", pair="$B:1 [SEP]:1 $A", special_tokens=[CLS, SEP])
PROCESSORS = {
    "none": None,
    "byte level": processors.ByteLevel(),
    "BERT": processors.BertProcessing(SEP, CLS),
    "RoBERTa": processors.RobertaProcessing(SEP, CLS),
    "template": TEMPLATE,
    "sequence": processors.Sequence([processors.ByteLevel(trim_offsets=False), TEMPLATE]),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_tokens_around_a_text_are_those_of_the_source(kind: str) -> None:
    source = source_with([special("<unused>"), special("[CLS]"), special("[SEP]")], processor=PROCESSORS[kind])
    converted = byte_level_tokenizer(source)
    for texts in (("a",), ("a", "b"), ("",)):
        assert framed(converted, *texts) == framed(source, *texts)
    assert ("[CLS]" in framed(converted, "a")[0]) == (kind not in ("none", "byte level"))


def test_the_begin_of_text_token_is_that_of_the_source(sentencepiece: PreTrainedTokenizerFast) -> None:
    converted = byte_level_tokenizer(sentencepiece)
    bos = converted.bos_token_id
    assert converted("ab").input_ids == [bos, *b"ab"]
    assert converted("a", "b").input_ids == [bos, *b"a", bos, *b"b"]


def test_templates(source: PreTrainedTokenizerFast, converted: PreTrainedTokenizerFast) -> None:
    rendered = source.apply_chat_template(CONVERSATION, tokenize=False)
    assert converted.apply_chat_template(CONVERSATION, tokenize=False) == rendered
    ids = converted.apply_chat_template(CONVERSATION, return_dict=False)
    control = [token for id_ in ids if id_ >= BYTES for token in converted.convert_ids_to_tokens([id_])]
    assert control == [
        token
        for token in source.convert_ids_to_tokens(source.apply_chat_template(CONVERSATION, return_dict=False))
        if token in source.all_special_tokens or token in literals(converted)
    ]
    assert len(control) >= 4
    assert converted.decode(ids) == rendered
    spelled = [bytes([id_]) if id_ < BYTES else converted.convert_ids_to_tokens(id_).encode() for id_ in ids]
    assert b"".join(spelled) == rendered.encode()


@pytest.mark.parametrize("model_type", [None, "llama", "gemma3_text", "gpt2", "qwen3", "phi3", "mistral"])
def test_auto_tokenizer_loads_it(
    source: PreTrainedTokenizerFast, converted: PreTrainedTokenizerFast, model_type: str | None, tmp_path: Path
) -> None:
    converted.save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert json.loads(loaded.backend_tokenizer.to_str()) == json.loads(converted.backend_tokenizer.to_str())
        assert loaded.special_tokens_map == source.special_tokens_map
        assert loaded.chat_template == source.chat_template
        for text in ADVERSARIAL_TEXTS[::5]:
            assert loaded(text).input_ids == converted(text).input_ids


def test_written_to_a_folder(llama_folder: str, tmp_path: Path) -> None:
    written = write_byte_level(llama_folder, tmp_path / "sub" / "bytes")
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["bytes"]
    loaded = load_tokenizer(str(tmp_path / "sub" / "bytes"))
    assert loaded.get_vocab() == written.get_vocab()
    assert loaded.chat_template == CHATML
    with pytest.raises(UserError, match="exists already"):
        write_byte_level(llama_folder, tmp_path / "sub" / "bytes")
    with pytest.raises(UserError, match="not a local folder"):
        write_byte_level(str(tmp_path / "nothing"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
