"""The source's special tokens in the target's vocabulary."""

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.new_tokenizer.byte_level import control_tokens
from alm_pipeline.new_tokenizer.special_tokens import keeps_source, with_special_tokens
from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.vocabulary.byte_view import byte_view
from storage.errors import UserError
from tests import real_tokenizers, tiny

CONVERSATION = [{"role": "user", "content": "Was ist 東京?"}, {"role": "assistant", "content": " Stadt\n\n🙂"}]
PAIRS = [("byte_level", "sentencepiece"), ("sentencepiece", "byte_level"), ("byte_level", "byte_level")]


def check(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    """Check what is true of every pair: ordinary tokens as in the target, special ones as in the source."""
    made = with_special_tokens(source, target)
    wanted, before = {token.content for token in control_tokens(source)}, target.get_vocab()
    gone = {token.content for token in control_tokens(target)} - wanted
    now = made.get_vocab()
    unknown = target.backend_tokenizer.model.unk_token if hasattr(target.backend_tokenizer.model, "unk_token") else None
    assert {token: id_ for token, id_ in before.items() if token not in gone}.items() <= now.items()
    assert wanted <= now.keys()
    assert gone & now.keys() <= {unknown}
    assert made.special_tokens_map == source.special_tokens_map
    assert len(set(now.values())) == len(now) == max(now.values()) + 1
    for text in ADVERSARIAL_TEXTS:
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        if not any(token in text for token in gone):  # those are ordinary text now
            assert made(text, **plain).input_ids == target(text, **plain).input_ids
        bodies = [tokenizer(text, add_special_tokens=False).tokens() for tokenizer in (source, made)]
        framed = [tokenizer(text).tokens() for tokenizer in (source, made)]
        added = [len(whole) - len(body) for whole, body in zip(framed, bodies, strict=True)]
        assert added[0] == added[1]
        assert framed[0][: added[0]] == framed[1][: added[0]]
    made.save_pretrained(folder)
    for loaded in (AutoTokenizer.from_pretrained(folder), load_tokenizer(str(folder))):
        assert loaded.get_vocab() == now
        if source.chat_template:
            texts = [each.apply_chat_template(CONVERSATION, tokenize=False) for each in (source, loaded)]
            assert texts[0] == texts[1]
            ids = loaded.apply_chat_template(CONVERSATION, return_dict=True)["input_ids"]
            assert wanted & set(loaded.convert_ids_to_tokens(ids))
            assert loaded.decode(ids) == texts[0]
    return made


@pytest.mark.parametrize("pair", PAIRS)
def test_ordinary_tokens_are_those_of_the_target_and_special_ones_those_of_the_source(
    pair: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source, target = map(request.getfixturevalue, pair)
    made = check(source, target, tmp_path)
    assert not byte_view(made.backend_tokenizer).special[target.convert_tokens_to_ids("a")]


@pytest.mark.parametrize(
    "pair", [("smollm2", "qwen3"), ("smollm2", "gemma3"), ("gemma3", "smollm2"), ("mistral_7b", "llama3")]
)
def test_with_real_tokenizers(pair: tuple[str, str], tmp_path: Path) -> None:
    check(real_tokenizers.require(pair[0]), real_tokenizers.require(pair[1]), tmp_path)


def test_ids_that_remain_free_are_reserved(byte_level: PreTrainedTokenizerFast) -> None:
    target = tiny.sentencepiece_tokenizer()
    made = with_special_tokens(byte_level, target)
    tokens = made.convert_ids_to_tokens(range(6))
    # pad, eos, bos, unk, start and end of turn: three are replaced, and the model needs <unk>
    assert tokens == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<|reserved 0|>", "<|reserved 1|>"]
    assert len(made) == len(target)


def unigram() -> PreTrainedTokenizerFast:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), *((letter, -3.0) for letter in "▁abc<>s"), ("▁ab", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def test_a_unigram_vocabulary_can_lose_its_own(byte_level: PreTrainedTokenizerFast) -> None:
    made = with_special_tokens(byte_level, unigram())
    assert made("<s> ab", add_special_tokens=False).tokens() == ["▁", "<", "s", ">", "▁ab"]
    assert made.convert_ids_to_tokens([0, 1]) == ["<unk>", "<|endoftext|>"]


def test_a_vocabulary_that_needs_its_own_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    tokenizer = Tokenizer(models.BPE({"<": 0, ">": 1, "<>": 2}, [("<", ">")]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<>", special=True)])
    with pytest.raises(UserError, match="set special_tokens to target"):
        with_special_tokens(byte_level, PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_auto_keeps_the_sources_special_tokens_if_the_target_lacks_some(
    byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level.backend_tokenizer, chat_template=tiny.CHATML)
    speechless = PreTrainedTokenizerFast(tokenizer_object=sentencepiece.backend_tokenizer, bos_token="<bos>")
    assert not keeps_source(byte_level, sentencepiece, "auto")  # the target begins texts, and chats
    assert keeps_source(sentencepiece, byte_level, "auto")  # puts no <bos> in front
    assert keeps_source(byte_level, bare, "auto")  # names none
    assert keeps_source(byte_level, speechless, "auto")  # has no chat template
    assert not keeps_source(bare, byte_level, "auto")
    assert keeps_source(byte_level, sentencepiece, "source")
    assert not keeps_source(sentencepiece, byte_level, "target")
