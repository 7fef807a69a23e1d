"""The compiled comparison of spellings with texts gives the results of plain Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.tokenization.spelling_kernel import spell_texts

VOCABULARY = [b"a", b" ", b" a", b"ab", b"", b"  ", b"\xff", b" ab"]
rows = st.lists(st.sampled_from(range(len(VOCABULARY))), max_size=5)


def compared(ids: list[list[int]], texts: list[bytes]) -> tuple[list[int], list[bool]]:
    starts = np.cumsum([0, *map(len, VOCABULARY)])
    flat = np.array([id_ for row in ids for id_ in row], np.int32)
    lengths, spelled = np.full(len(flat), 99, np.int32), np.zeros(len(texts), dtype=bool)
    offsets, text_offsets = np.cumsum([0, *map(len, ids)]), np.cumsum([0, *map(len, texts)])
    letters, text = (np.frombuffer(b"".join(part), np.uint8) for part in (VOCABULARY, texts))
    spell_texts(flat, offsets, letters, starts, text, text_offsets, lengths, spelled)
    return lengths.tolist(), spelled.tolist()


def oracle(ids: list[int], text: bytes) -> tuple[list[int], bool]:
    lengths, spelling = [len(VOCABULARY[id_]) for id_ in ids], b"".join(VOCABULARY[id_] for id_ in ids)
    if spelling != text and ids and VOCABULARY[ids[0]].startswith(b" ") and spelling == b" " + text:
        return [lengths[0] - 1, *lengths[1:]], True
    return lengths, spelling == text


@given(st.lists(st.tuples(rows, st.sampled_from(["same", "shorter", "without", "other"])), max_size=5))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_it_equals_plain_python(examples: list[tuple[list[int], str]]) -> None:
    ids = [row for row, _ in examples]
    spellings = [b"".join(VOCABULARY[id_] for id_ in row) for row in ids]
    change = {
        "same": lambda s: s,
        "shorter": lambda s: s[:-1],
        "without": lambda s: s[1:],
        "other": lambda s: s[:-1] + b"z",
    }
    texts = [change[how](spelling) for spelling, (_, how) in zip(spellings, examples, strict=True)]
    expected = [oracle(row, text) for row, text in zip(ids, texts, strict=True)]
    lengths, spelled = compared(ids, texts)
    assert spelled == [same for _, same in expected]
    assert lengths == [length for row, _ in expected for length in row]
