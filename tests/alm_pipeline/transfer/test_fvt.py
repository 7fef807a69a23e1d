"""Vocabulary transfer, held to means taken one by one."""

import copy

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.byte_view import byte_view
from alm_pipeline.transfer.fvt import VocabularyMap, compose_rows, map_vocabulary, transfer_vocabulary
from alm_pipeline.transfer.train_tokenizer import train_tokenizer
from tests import tiny


def test_pieces_spell_the_token(byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast) -> None:
    for source, target in ((byte_level, sentencepiece), (sentencepiece, byte_level)):
        source_view, target_view = byte_view(source.backend_tokenizer), byte_view(target.backend_tokenizer)
        for id_, pieces in enumerate(map_vocabulary(source, target).pieces):
            if not target_view.special[id_]:
                spelled = b"".join(source_view.spelling[piece] for piece in pieces)
                assert spelled == target_view.spelling[id_]


def test_tokens_of_the_same_bytes_are_copied(byte_level: PreTrainedTokenizerFast) -> None:
    assert map_vocabulary(byte_level, byte_level).pieces == tuple((id_,) for id_ in range(len(byte_level)))


def test_special_tokens_go_by_literal_and_then_by_role(
    byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    pieces = map_vocabulary(byte_level, sentencepiece).pieces
    assert pieces[sentencepiece.eos_token_id] == (byte_level.eos_token_id,)
    assert pieces[sentencepiece.bos_token_id] == (byte_level.bos_token_id,)
    # neither a literal nor a role in common
    assert pieces[sentencepiece.convert_tokens_to_ids("<start_of_turn>")] == ()


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_moved_to_its_own_tokenizer_is_the_same(byte_level: PreTrainedTokenizerFast, tied: bool) -> None:
    model = tiny.tiny_llama(len(byte_level), tied=tied)
    moved = copy.deepcopy(model)
    counts = transfer_vocabulary(moved, byte_level, byte_level).counts()
    assert counts == {"copied": len(byte_level)}
    ids = torch.arange(20)[None]
    torch.testing.assert_close(moved(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_means_of_pieces(byte_level: PreTrainedTokenizerFast, tied: bool) -> None:
    model = tiny.tiny_llama(len(byte_level), tied=tied)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [table.detach().clone() for table in tables]
    target = train_tokenizer(tiny.TEXTS, 330, byte_level)
    mapping = transfer_vocabulary(model, byte_level, target)
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (after[0] is after[1]) == tied
    for old, new in zip(before, after, strict=True):
        assert new.shape[0] == len(target) == model.config.vocab_size
        for row, pieces in zip(new, mapping.pieces, strict=True):
            if pieces:
                torch.testing.assert_close(row, torch.stack([old[piece] for piece in pieces]).mean(0))


def test_draws_come_from_the_sources_distribution_and_the_seed() -> None:
    source = torch.randn(500, 40) * torch.linspace(0.1, 2, 40) + 3
    mapping = VocabularyMap(((),) * 4000)
    drawn = compose_rows(source, mapping, seed=1)
    torch.testing.assert_close(drawn.mean(0), source.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.std(0), source.std(0), atol=0.15, rtol=0)
    assert torch.equal(drawn, compose_rows(source, mapping, seed=1))
    assert not torch.equal(drawn, compose_rows(source, mapping, seed=2))


def test_special_ids_follow_their_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    model = tiny.tiny_llama(len(byte_level))
    model.config.bos_token_id = byte_level.convert_tokens_to_ids("<|im_start|>")
    model.generation_config.eos_token_id = [
        byte_level.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")
    ]
    target = tiny.byte_level_tokenizer(300)
    target.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    transfer_vocabulary(model, byte_level, target)
    assert model.config.bos_token_id == target.convert_tokens_to_ids("<|im_start|>")
    assert model.generation_config.eos_token_id == [
        target.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")
    ]


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
