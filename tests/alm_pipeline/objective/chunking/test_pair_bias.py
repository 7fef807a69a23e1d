"""The tokenization bias of token pairs, checked against its definition on strings."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alm_pipeline.objective.chunking.pair_bias import PairBiases, Pairs, pair_biases
from alm_pipeline.vocabulary.byte_view import byte_view
from tests import tiny


def words_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single bytes and these words, merged from left to right."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = [word.replace(" ", "\u0120") for word in words]
    merges = list(dict.fromkeys((word[:at], word[at]) for word in spelled for at in range(1, len(word))))
    vocabulary = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def counts_of(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> np.ndarray:
    counts = np.zeros(byte_view(tokenizer.backend_tokenizer).size, np.int64)
    for text in texts:
        np.add.at(counts, tokenizer.encode(text, add_special_tokens=False), 1)
    return counts


def id_of(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    (id_,) = tokenizer.encode(text, add_special_tokens=False)
    return id_


def cover_by_definition(tokenizer: PreTrainedTokenizerFast, id_: int) -> dict[bytes, int]:
    """extension → excluding token, over the whole vocabulary."""
    view = byte_view(tokenizer.backend_tokenizer)
    spelling, cover = view.spelling[id_], {}
    for at in range(len(spelling)):
        for other, text in enumerate(view.spelling):
            if not view.special[other] and len(text) > len(spelling) - at and text.startswith(spelling[at:]):
                try:
                    before, whole = spelling[:at].decode(), spelling[:at].decode() + text.decode()
                except UnicodeDecodeError:
                    continue
                encoded = [tokenizer.encode(each, add_special_tokens=False) for each in (before, whole)]
                if encoded[1] == [*encoded[0], other]:
                    cover[text[len(spelling) - at :]] = other
    return cover


def bias_by_definition(
    own: PreTrainedTokenizerFast, own_id: int, other: PreTrainedTokenizerFast, other_id: int, counts: np.ndarray
) -> float:
    cover, excluded = cover_by_definition(own, own_id), cover_by_definition(other, other_id)
    return sum(counts[token] for text, token in cover.items() if text not in excluded) / counts.sum()


def is_space(tokenizer: PreTrainedTokenizerFast, id_: int) -> bool:
    return not byte_view(tokenizer.backend_tokenizer).spelling[id_].decode(errors="replace").strip()


def check_by_definition(
    teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast, texts: Sequence[str], pairs: Pairs
) -> None:
    counts = counts_of(teacher, texts), counts_of(student, texts)
    found = pair_biases(teacher, student, *counts, pairs)
    for t, s, towards_teacher, towards_student in zip(*found, strict=True):
        if is_space(teacher, t) or is_space(student, s):
            assert (towards_teacher, towards_student) == (1, 1)
            continue
        assert towards_teacher == pytest.approx(bias_by_definition(teacher, t, student, s, counts[0]), abs=1e-7)
        assert towards_student == pytest.approx(bias_by_definition(student, s, teacher, t, counts[1]), abs=1e-7)


def some_pairs(
    teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast, texts: Sequence[str], most: int
) -> Pairs:
    """Pairs of tokens that occur, one of which is a suffix of the other."""
    spelled = [byte_view(side.backend_tokenizer).spelling for side in (teacher, student)]
    occurring = [np.flatnonzero(counts_of(side, texts)) for side in (teacher, student)]
    found = [
        (t, s)
        for t in occurring[0].tolist()
        for s in occurring[1].tolist()
        if spelled[0][t].endswith(spelled[1][s]) or spelled[1][s].endswith(spelled[0][t])
    ]
    chosen = np.random.default_rng(0).permutation(np.array(found))[:most]
    return Pairs.of(chosen[:, 0], chosen[:, 1])


def test_a_word_that_only_one_side_has_with_its_comma() -> None:
    """After ` Hello` the teacher excludes `,`: its token ` Hello,` is 3 of its 4 tokens."""
    teacher, student = words_tokenizer([" Hello,"]), words_tokenizer([" Hello"])
    texts = [" Hello,", " Hello,", " Hello,", " Hello"]
    pairs = Pairs.of(np.array([id_of(teacher, " Hello")]), np.array([id_of(student, " Hello")]))
    found = pair_biases(teacher, student, counts_of(teacher, texts), counts_of(student, texts), pairs)
    assert found.towards_teacher.tolist() == [0.75]
    assert found.towards_student.tolist() == [0]


def test_a_token_that_never_occurs_excludes_and_weighs_nothing() -> None:
    """The student has ` Hello,` too: it also excludes `,`, although ` Hello,` never occurs."""
    teacher, student = words_tokenizer([" Hello,"]), words_tokenizer([" Hello,", " Hello!"])
    pairs = Pairs.of(np.array([id_of(teacher, " Hello")]), np.array([id_of(student, " Hello")]))
    found = pair_biases(teacher, student, counts_of(teacher, [" Hello,"]), counts_of(student, [" Hello"]), pairs)
    assert found.towards_teacher.tolist() == [0]
    assert found.towards_student.tolist() == [0]


def test_a_token_from_within_the_other_excludes() -> None:
    """`ab` cannot be followed by `cd`: the tokenizer encodes `a`, `bcd`."""
    teacher, student = words_tokenizer([]), words_tokenizer([])
    letters = student.get_vocab()
    base = max(letters.values())
    vocabulary = {**letters, "bc": base + 1, "bcd": base + 2, "ab": base + 3}
    bpe = Tokenizer(models.BPE(vocabulary, [("b", "c"), ("bc", "d"), ("a", "b")]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    student = PreTrainedTokenizerFast(tokenizer_object=bpe)
    assert cover_by_definition(student, base + 3) == {b"c": base + 1, b"cd": base + 2}
    texts = ["bcd", "bcd", "bc", "ab"]
    pairs = Pairs.of(np.array([letters["b"]]), np.array([base + 3]))
    found = pair_biases(teacher, student, counts_of(teacher, texts), counts_of(student, texts), pairs)
    assert (found.towards_teacher.tolist(), found.towards_student.tolist()) == ([0], [0.75])


@pytest.mark.parametrize("make", [tiny.byte_level_tokenizer, tiny.sentencepiece_tokenizer])
def test_a_tokenizer_has_no_bias_against_itself(make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    counts = counts_of(tokenizer, tiny.TEXTS)
    ids = np.flatnonzero(counts)
    ids = ids[[not is_space(tokenizer, id_) for id_ in ids.tolist()]]
    found = pair_biases(tokenizer, tokenizer, counts, counts, Pairs.of(ids, ids))
    assert not found.towards_teacher.any()
    assert not found.towards_student.any()


def test_single_bytes_exclude_nothing(byte_level: PreTrainedTokenizerFast) -> None:
    bytes_only = words_tokenizer([])
    pairs = some_pairs(byte_level, bytes_only, tiny.TEXTS, 100)
    found = pair_biases(
        byte_level, bytes_only, counts_of(byte_level, tiny.TEXTS), counts_of(bytes_only, tiny.TEXTS), pairs
    )
    compared = [not is_space(byte_level, id_) for id_ in pairs.teacher_ids.tolist()]
    assert not found.towards_student[compared].any()
    assert found.towards_teacher[compared].any()


def test_biases_are_those_of_the_definition(
    byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    check_by_definition(sentencepiece, byte_level, tiny.TEXTS, some_pairs(sentencepiece, byte_level, tiny.TEXTS, 40))


def test_what_occurs_only_elsewhere_counts_as_by_the_definition(
    byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    """With the counts of one text only, most tokens never occur."""
    texts = tiny.TEXTS[1:2]
    check_by_definition(byte_level, sentencepiece, texts, some_pairs(byte_level, sentencepiece, texts, 40))


@given(st.lists(st.text("ab ", min_size=2, max_size=4), max_size=5), st.lists(st.text("ab ", min_size=2), max_size=3))
@example(["a b"], [" b", "a b"])  # a token that no text is encoded to
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_small_vocabularies_as_by_the_definition(words: list[str], others: list[str]) -> None:
    teacher, student = words_tokenizer(words), words_tokenizer([other[:4] for other in others])
    texts = ["ab ba", "aab", " a b", *words]
    check_by_definition(teacher, student, texts, some_pairs(teacher, student, texts, 12))


def test_nothing_is_put_in_front_of_a_text() -> None:
    """With a space before it, no text would begin with the token `ab`, and it would exclude nothing."""
    plain = words_tokenizer([" ab", "abc"])
    pieces = ["<unk>", "\u2581", "a", "b", "c", "ab", "abc"]
    bpe = Tokenizer(models.BPE({piece: id_ for id_, piece in enumerate(pieces)}, [("a", "b"), ("ab", "c")]))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bpe.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    prefixing = PreTrainedTokenizerFast(tokenizer_object=bpe)
    counts = np.bincount([6, 5, 5, 5], minlength=7)
    pairs = Pairs.of(np.array([5]), np.array([plain.get_vocab()["b"]]))
    found = pair_biases(prefixing, plain, counts, counts_of(plain, ["b"]), pairs)
    assert found.towards_teacher.tolist() == [0.25]


def test_pairs_are_unique_and_sorted() -> None:
    pairs = Pairs.of(np.array([3, 1, 3, 1]), np.array([0, 7, 0, 2]))
    assert (pairs.teacher_ids.tolist(), pairs.student_ids.tolist()) == ([1, 1, 3], [2, 7, 0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_a_pair_is_within_gamma_where_both_directions_are(asked: list[tuple[int, int]]) -> None:
    known = {(0, 1): (0.0, 0.1), (2, 0): (0.3, 0.0), (2, 5): (0.0, 0.0), (4, 4): (0.1, 0.2)}
    ids, values = np.array(list(known), np.int32).T, np.array(list(known.values()), np.float32).T
    biases = PairBiases(ids[0], ids[1], values[0], values[1])
    expected = [max(known.get(pair, (9, 9))) <= 0.1 for pair in asked]
    teacher_ids, student_ids = np.array(asked, np.int64).reshape(-1, 2).T
    assert biases.at_most(0.1, teacher_ids, student_ids).tolist() == expected


def test_without_any_pair_none_is_within_gamma() -> None:
    empty = np.zeros(0, np.int32)
    biases = PairBiases(empty, empty, empty.astype(np.float32), empty.astype(np.float32))
    assert biases.at_most(1.0, np.array([1]), np.array([2])).tolist() == [False]
    assert Counter(biases.at_most(1.0, empty, empty)) == Counter()
