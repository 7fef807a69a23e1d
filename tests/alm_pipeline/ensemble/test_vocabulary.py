"""The tokens that two vocabularies share, and texts spelled with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from alm_pipeline.ensemble.retokenization import Retokenizer
from alm_pipeline.ensemble.vocabulary import Respeller, counterparts
from alm_pipeline.vocabulary.byte_view import byte_view
from storage.errors import UserError
from tests import tiny

LEAD, MEMBER = tiny.byte_level_tokenizer(), tiny.sentencepiece_tokenizer()
VIEW, MEMBER_VIEW = byte_view(LEAD.backend_tokenizer), byte_view(MEMBER.backend_tokenizer)
PAIRS = counterparts(LEAD, MEMBER)
RESPELLER = Respeller(VIEW, PAIRS >= 0)
RETOKENIZER = Retokenizer(LEAD, MEMBER)


@pytest.mark.parametrize(("lead", "member"), [(LEAD, MEMBER), (MEMBER, LEAD)])
def test_tokens_are_paired_one_to_one_by_bytes_and_roles(
    lead: PreTrainedTokenizerFast, member: PreTrainedTokenizerFast
) -> None:
    pairs = counterparts(lead, member)
    views = [byte_view(each.backend_tokenizer) for each in (lead, member)]
    found = pairs[pairs >= 0]
    assert len(set(found.tolist())) == len(found)
    for role in ("bos", "eos"):
        assert pairs[getattr(lead, f"{role}_token_id")] == getattr(member, f"{role}_token_id")
    spellings = {views[1].spelling[id_] for id_ in range(views[1].size) if not views[1].special[id_]} - {b""}
    once = set[bytes]()
    for id_ in np.flatnonzero(~views[0].special):
        if pairs[id_] >= 0:
            assert views[0].spelling[id_] == views[1].spelling[pairs[id_]]
            once.add(views[0].spelling[id_])
    # no token of both is missing
    assert once == spellings & {views[0].spelling[id_] for id_ in np.flatnonzero(~views[0].special)}


def test_a_letter_is_not_paired_with_the_byte_token_of_it() -> None:
    letter = LEAD.convert_tokens_to_ids("a")
    assert MEMBER.convert_ids_to_tokens(int(PAIRS[letter])) == "a"
    back = counterparts(MEMBER, LEAD)
    assert back[MEMBER.convert_tokens_to_ids("a")] == letter
    assert back[MEMBER.convert_tokens_to_ids("<0x61>")] == -1


def test_a_vocabulary_is_its_own_counterpart() -> None:
    for tokenizer in (LEAD, MEMBER):
        assert counterparts(tokenizer, tokenizer).tolist() == sorted(tokenizer.get_vocab().values())


def test_padding_takes_no_part_of_the_end_of_text() -> None:
    # the byte-level tokenizer pads with its end-of-text token; Gemma's has one of its own
    back = counterparts(MEMBER, LEAD)
    assert back[MEMBER.eos_token_id] == LEAD.eos_token_id
    assert back[MEMBER.pad_token_id] == -1


@given(st.text(max_size=40))
def test_shared_tokens_spell_the_same_text(text: str) -> None:
    ids = LEAD(text, add_special_tokens=False)["input_ids"]
    respelled = RESPELLER.respell(ids)
    assert VIEW.spell(np.array(respelled, np.int32)) == VIEW.spell(np.array(ids, np.int32))
    assert (PAIRS[respelled] >= 0).all()


def test_the_fewest_pieces_are_taken() -> None:
    by_bytes = {VIEW.spelling[id_]: id_ for id_ in range(VIEW.size) if not VIEW.special[id_]}
    word = max(by_bytes, key=len)
    readable = np.isin(np.arange(VIEW.size), [by_bytes[bytes([byte])] for byte in range(256)])
    assert len(Respeller(VIEW, readable).respell([by_bytes[word]])) == len(word)
    readable[by_bytes[b"qu"]] = True
    whole = by_bytes[b" quick"]
    pieces = [VIEW.spelling[id_] for id_ in Respeller(VIEW, readable).respell([whole])]
    assert pieces == [b" ", b"qu", b"i", b"c", b"k"]


def test_what_cannot_be_spelled_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be spelled with the tokens that all members have"):
        Respeller(VIEW, np.zeros(VIEW.size, dtype=bool)).respell([300])


@given(st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]), max_size=30), st.integers(1, 40))
def test_a_member_reads_the_text_so_far(text: str, end: int) -> None:
    ids = LEAD(text, add_special_tokens=False)["input_ids"][:end]
    own = RETOKENIZER(ids)
    content = VIEW.spell(np.array(ids, np.int32))
    assert own[0] == MEMBER.bos_token_id
    assert MEMBER_VIEW.spell(np.array(own[1:], np.int32)) == content  # incomplete characters, too: it has byte tokens
    if content.decode(errors="ignore").encode() == content:
        assert list(own) == MEMBER(content.decode())["input_ids"]


def test_special_tokens_go_by_role_and_otherwise_as_text() -> None:
    start = LEAD.bos_token_id
    assert RETOKENIZER([start, start])[:2] == (MEMBER.bos_token_id,) * 2
    back = Retokenizer(MEMBER, LEAD)
    own = back([MEMBER.bos_token_id, MEMBER.convert_tokens_to_ids("<start_of_turn>")])
    assert own[0] == LEAD.bos_token_id
    assert LEAD.decode(own[1:]) == "<start_of_turn>"
    assert back([]) == (LEAD.bos_token_id,)
