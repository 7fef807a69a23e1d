"""Vocabulary transfer by FVT: pieces of tokens, and counterparts of special tokens."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.trained import train_tokenizer
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.transfer.carry_over import carry_over
from alm_pipeline.transfer.fvt import (
    ROLES,
    chat_tokens,
    ids_with_role,
    map_vocabulary,
    special_counterparts,
    special_ids,
)
from alm_pipeline.vocabulary.byte_view import byte_view
from storage.schemas import TokenKind
from tests import tiny
from tests.real_tokenizers import REAL_TOKENIZERS, require


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


def _with_tokens(*, special: Sequence[str] = (), added: Sequence[str] = (), ordinary: Sequence[str] = (), **roles: str):
    """The byte-level tokenizer with tokens of these literals."""
    backend = tiny.byte_level_tokenizer().backend_tokenizer
    state = json.loads(backend.to_str())
    size = max(state["model"]["vocab"].values()) + 1
    state["model"]["vocab"] |= {literal: size + k for k, literal in enumerate(ordinary)}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens([AddedToken(literal, special=True, normalized=False) for literal in special])
    tokenizer.add_tokens([AddedToken(literal, special=False, normalized=False) for literal in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


LLAMA = {"special": ("<s>", "</s>", "<unk>"), "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(
            {"ordinary": ("<s>", "</s>", "<unk>"), "eos_token": "<|im_end|>"},
            {"<s>": None, "</s>": "<|im_end|>", "<unk>": None},
            id="ordinary tokens, as Qwen's",
        ),
        pytest.param(
            {"added": ("<s>", "</s>", "<unk>"), "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"},
            {"<s>": "<|im_start|>", "</s>": "<|im_end|>", "<unk>": None},
            id="added tokens that are not special, as Gemma's",
        ),
        pytest.param(LLAMA, {"<s>": "<s>", "</s>": "</s>", "<unk>": "<unk>"}, id="special tokens"),
        pytest.param(
            {"special": ("</s>", "<unk>"), "bos_token": "</s>", "eos_token": "<unk>"},
            {"<s>": "</s>", "</s>": "</s>", "<unk>": "<unk>"},
            id="special tokens in other roles",
        ),
        pytest.param({}, {"<s>": None, "</s>": None, "<unk>": None}, id="no such tokens"),
    ],
)
def test_an_ordinary_token_is_no_special_token(source: dict[str, Any], expected: dict[str, str | None]) -> None:
    """To Llama 2's special tokens: only a special token of the source has their literal, then the role decides."""
    ours, theirs = _with_tokens(**source), _with_tokens(**LLAMA)
    pairs = special_counterparts(ours, theirs)
    found = {literal: pairs.get(theirs.get_vocab()[literal]) for literal in expected}
    assert found == {literal: token and ours.get_vocab()[token] for literal, token in expected.items()}
    pieces = map_vocabulary(LoadedTokenizer.of(ours), LoadedTokenizer.of(theirs)).pieces
    for literal, id_ in found.items():
        assert pieces[theirs.get_vocab()[literal]] == (() if id_ is None else (id_,))


@pytest.mark.parametrize("kind", ["ordinary", "added"])
def test_a_token_that_is_text_is_spelled_as_text(kind: str) -> None:
    """From Llama 2's tokens: what is text in the target never takes the row of the source's begin of text."""
    ours, theirs = _with_tokens(**LLAMA), _with_tokens(**{kind: ("<s>", "</s>", "<unk>", "a</s>")})
    pieces = map_vocabulary(LoadedTokenizer.of(ours), LoadedTokenizer.of(theirs)).pieces
    for literal in ("<s>", "</s>", "<unk>"):
        assert "".join(ours.convert_ids_to_tokens(list(pieces[theirs.get_vocab()[literal]]))) == literal
        assert not {ours.get_vocab()[special] for special in LLAMA["special"]} & {*pieces[theirs.get_vocab()[literal]]}


def test_an_unmarked_control_token_without_a_role_is_the_same_token() -> None:
    """`<think>` is added to Qwen 3 without being marked as special."""
    ours, theirs = _with_tokens(added=("<think>",)), _with_tokens(special=("<think>",))
    assert special_counterparts(ours, theirs)[theirs.get_vocab()["<think>"]] == ours.get_vocab()["<think>"]


@pytest.mark.parametrize("source", ["qwen2_5", "qwen3", "gemma2", "gemma3"])
def test_special_counterparts_of_real_tokenizers_are_special(source: str) -> None:
    ours, theirs = require(source), require("mistral_7b")
    special = special_ids(ours)
    expected = {"</s>": ours.eos_token} | ({"<s>": ours.bos_token} if ours.bos_token else {})
    expected |= {"<unk>": ours.unk_token} if ours.unk_token else {}
    pairs = special_counterparts(ours, theirs)
    assert {theirs.convert_ids_to_tokens(id_): pair for id_, pair in pairs.items()} == {
        literal: special[token] for literal, token in expected.items()
    }


@pytest.mark.long
def test_special_counterparts_of_all_pairs_of_real_tokenizers_are_no_text() -> None:
    """An ordinary token never stands for a special one, whatever its literal; the same literal, or else the role."""
    tokenizers = {name: require(name) for name in REAL_TOKENIZERS}
    for (source, ours), (target, theirs) in itertools.permutations(tokenizers.items(), 2):
        special, with_role = special_ids(ours), ids_with_role(ours)
        added, target_roles = ours.get_added_vocab(), ids_with_role(theirs)
        pairs = special_counterparts(ours, theirs)
        for id_, source_id in pairs.items():
            literal = theirs.convert_ids_to_tokens(id_)
            if literal in special:
                assert source_id == special[literal], (source, target, literal)
            elif id_ in target_roles:
                assert source_id in with_role, (source, target, literal)
            else:
                assert source_id == added[literal], (source, target, literal)
        for role in ROLES:
            ids = [getattr(tokenizer, f"{role}_id") for tokenizer in (ours, theirs)]
            assert None in ids or ids[1] in pairs, (source, target, role)


@pytest.mark.parametrize("kind", ["ordinary", "added"])
def test_a_role_does_not_move_to_a_token_that_is_text(kind: str) -> None:
    """A model that ends texts with `</s>` must not end them with the target's text token of that literal."""
    ours = _with_tokens(**LLAMA)
    theirs = _with_tokens(**{kind: ("<s>", "</s>")}, eos_token="<|im_end|>")
    model = tiny.tiny_llama(len(ours))
    model.config.bos_token_id, model.config.eos_token_id = ours.bos_token_id, ours.eos_token_id
    model.generation_config.eos_token_id = [ours.eos_token_id]
    carry_over(model, ours, theirs)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (None, theirs.eos_token_id)
    assert model.generation_config.eos_token_id == [theirs.eos_token_id]
