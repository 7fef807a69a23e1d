"""Vocabulary transfer by FVT: pieces of tokens, and counterparts of special tokens."""

from transformers import PreTrainedTokenizerFast

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.trained import train_tokenizer
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.transfer.fvt import chat_tokens, map_vocabulary
from alm_pipeline.vocabulary.byte_view import byte_view
from storage.schemas import TokenKind
from tests import tiny


def test_pieces_spell_the_token(byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast) -> None:
    for source, target in ((byte_level, sentencepiece), (sentencepiece, byte_level)):
        source_view, target_view = byte_view(source.backend_tokenizer), byte_view(target.backend_tokenizer)
        for id_, pieces in enumerate(map_vocabulary(LoadedTokenizer.of(source), LoadedTokenizer.of(target)).pieces):
            if not target_view.special[id_]:
                spelled = b"".join(source_view.spelling[piece] for piece in pieces)
                assert spelled == target_view.spelling[id_]


def test_tokens_of_the_same_bytes_are_copied(byte_level: PreTrainedTokenizerFast) -> None:
    mapping = map_vocabulary(LoadedTokenizer.of(byte_level), LoadedTokenizer.of(byte_level))
    assert mapping.pieces == tuple((id_,) for id_ in range(len(byte_level)))
    assert mapping.means().counts() == {"copied": len(byte_level)}


def test_pieces_do_not_depend_on_who_used_the_tokenizer_before() -> None:
    source, target = tiny.byte_level_tokenizer(), tiny.byte_level_tokenizer()
    target.add_tokens(["a<|im_end|>b"])
    expected = map_vocabulary(LoadedTokenizer.of(source), LoadedTokenizer.of(target)).pieces
    StandardEngine(source.backend_tokenizer).encode(["text"], special_literals=False)
    assert map_vocabulary(LoadedTokenizer.of(source), LoadedTokenizer.of(target)).pieces == expected
    assert source.convert_tokens_to_ids("<|im_end|>") in expected[-1]


def test_special_tokens_go_by_literal_then_by_the_chats_role_then_by_the_tokenizers(
    byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    pieces = map_vocabulary(LoadedTokenizer.of(byte_level), LoadedTokenizer.of(sentencepiece)).pieces
    theirs, ours = byte_level.get_vocab(), sentencepiece.get_vocab()
    assert pieces[ours["<eos>"]] == pieces[ours["<end_of_turn>"]] == (theirs["<|im_end|>"],)
    assert pieces[ours["<bos>"]] == pieces[ours["<start_of_turn>"]] == (theirs["<|im_start|>"],)
    # neither a literal nor a role in common
    assert pieces[ours["<unk>"]] == ()


def test_what_a_template_writes_has_its_role(
    byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    found = {kind: sentencepiece.convert_ids_to_tokens(id_) for kind, id_ in chat_tokens(sentencepiece).items()}
    assert found == {
        TokenKind.BEGIN_OF_TEXT: "<bos>",
        TokenKind.START_OF_TURN: "<start_of_turn>",
        TokenKind.END_OF_TURN: "<end_of_turn>",
    }
    assert chat_tokens(PreTrainedTokenizerFast(tokenizer_object=byte_level.backend_tokenizer)) == {}


def test_a_trained_tokenizer_keeps_the_sources_special_tokens_and_template(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    trained = train_tokenizer(tiny.TEXTS, 300, byte_level)
    assert len(trained) == 300
    for role in ("bos_token", "eos_token", "pad_token"):
        assert getattr(trained, role) == getattr(byte_level, role)
    messages = [{"role": "user", "content": "12 東京"}]
    assert trained.apply_chat_template(messages, tokenize=False) == byte_level.apply_chat_template(
        messages, tokenize=False
    )
    assert trained.decode(trained("12 東京 \x00\n").input_ids) == "12 東京 \x00\n"
    assert len(trained("12345").input_ids) == 5


def test_training_a_tokenizer_twice_gives_the_same(byte_level: PreTrainedTokenizerFast) -> None:
    states = [train_tokenizer(tiny.TEXTS, 320, byte_level).backend_tokenizer.to_str() for _ in range(2)]
    assert states[0] == states[1]
