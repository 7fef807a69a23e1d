"""The nearest token in edits, checked against the textbook's table over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from alm_pipeline.objective.baselines.mined_mapping import mined_mapping
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view
from tests import tiny

# letters, a repeated byte, and parts of multi-byte characters; some beyond a machine word
token = st.one_of(
    st.text("abA \n7é東", min_size=1, max_size=6),
    st.text("ab", min_size=60, max_size=70),
    st.text("東 ", min_size=1, max_size=30),
)


def vocabulary(tokens: list[str], specials: tuple[str, ...] = ()) -> ByteView:
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(special) for special in specials])
    return byte_view(tokenizer)


def levenshtein(one: bytes, other: bytes) -> int:
    before = list(range(len(other) + 1))
    for row, byte in enumerate(one, 1):
        after = [row]
        for place, letter in enumerate(other):
            after.append(min(before[place] + (byte != letter), before[place + 1] + 1, after[-1] + 1))
        before = after
    return before[-1]


def brute_force(teacher: ByteView, student: ByteView) -> list[int]:
    ordinary = [id_ for id_ in range(teacher.size) if teacher.spelling[id_] and not teacher.special[id_]]
    # a byte fallback's token is never used if another token has the same spelling
    letters = {teacher.spelling[id_] for id_ in ordinary if not teacher.fallback[id_]}
    ids = [id_ for id_ in ordinary if not (teacher.fallback[id_] and teacher.spelling[id_] in letters)]
    return [min(ids, key=lambda id_: levenshtein(teacher.spelling[id_], spelling)) for spelling in student.spelling]


@settings(deadline=None, max_examples=50)  # the first call compiles
@given(
    teacher=st.lists(token, min_size=1, max_size=8, unique=True),
    student=st.lists(token, min_size=1, max_size=4, unique=True),
)
def test_the_mapping_is_brute_force(teacher: list[str], student: list[str]) -> None:
    views = vocabulary(teacher), vocabulary(student)
    assert mined_mapping(*views).tolist() == brute_force(*views)


def test_the_mapping_of_trained_vocabularies_is_brute_force() -> None:
    views = [byte_view(made().backend_tokenizer) for made in (tiny.byte_level_tokenizer, tiny.sentencepiece_tokenizer)]
    for teacher, student in (views, views[::-1]):
        mapping, ordinary = mined_mapping(teacher, student), ~student.special & (student.lengths > 0)
        expected = np.array(brute_force(teacher, student))
        assert mapping[ordinary].tolist() == expected[ordinary].tolist()
        assert (mapping[~ordinary] == -1).all()


def test_special_tokens_go_by_their_literal_or_by_the_given_pairs() -> None:
    teacher = vocabulary(["a", "<eos>x"], ("<pad>", "<end>", "<bos>"))
    student = vocabulary(["b", "<bos>"], ("<eos>", "<pad>", "<stop>"))
    # an ordinary token that looks like a special one is ordinary
    assert mined_mapping(teacher, student).tolist() == [0, 1, -1, 2, -1]
    assert mined_mapping(teacher, student, {2: 3}).tolist() == [0, 1, 3, 2, -1]


def test_ids_without_a_token_and_vocabularies_without_ordinary_tokens() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "c": 3}, []))
    tokenizer.decoder = decoders.Fuse()
    gaps = byte_view(tokenizer)
    assert mined_mapping(gaps, gaps).tolist() == [0, -1, -1, 3]
    assert mined_mapping(vocabulary(["b"]), gaps).tolist() == [0, -1, -1, 0]
    assert mined_mapping(vocabulary([], ("<pad>",)), gaps).tolist() == [-1] * 4


@pytest.mark.parametrize("letters", ["", "x"])
def test_the_lowest_id_of_equally_near_tokens(letters: str) -> None:
    """Also if another token is found first, because its length is closer."""
    teacher = vocabulary([letters + "abcd", letters + "ab", letters + "abx", letters + "aby"])
    assert mined_mapping(teacher, vocabulary([letters + "abc"])).tolist() == [0]
    assert mined_mapping(teacher, vocabulary([letters + "abz"])).tolist() == [1]
