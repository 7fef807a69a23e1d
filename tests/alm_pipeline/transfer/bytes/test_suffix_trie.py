"""The lookup finds the same as trying every suffix, for any vocabulary and text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alm_pipeline.transfer.bytes import modeling_ngram_bytes
from alm_pipeline.transfer.bytes.modeling_ngram_bytes import LONGEST, Ngrams, _context
from alm_pipeline.transfer.bytes.suffix_trie import suffix_trie

SPECIAL = 256
Text = list[int]
"""bytes, and 256 for a special token"""


def filled(spellings: list[bytes]) -> Ngrams:
    trie = suffix_trie(spellings)
    ngrams = Ngrams(nn.Embedding(3, 2), len(spellings), len(trie.bases))
    for name, values in trie._asdict().items():
        ngrams.get_buffer(name).copy_(torch.from_numpy(values))
    return ngrams


def longest(ngrams: Ngrams, rows: list[Text], positions: Tensor | None = None) -> list[list[int]]:
    ids = torch.tensor(rows)
    return ngrams.longest(*_context(ids[:, :0], ids, positions, None)).tolist()  # type: ignore[no-any-return]


def tried(spellings: list[bytes], text: Text) -> list[int]:
    """Try every suffix at every place of one text."""
    token_of = {spelling: number for number, spelling in enumerate(spellings, 1)}
    found = []
    for end in range(1, len(text) + 1):
        since = max([0, *(place + 1 for place in range(end) if text[place] == SPECIAL)])
        suffixes = (bytes(text[start:end]) for start in range(since, end))
        found.append(next((token_of[suffix] for suffix in suffixes if suffix in token_of), 0))
    return found


def vocabularies(letters: st.SearchStrategy[int]) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.lists(letters, min_size=1, max_size=LONGEST).map(bytes), unique=True, max_size=40)


# few letters: tokens within tokens, and long runs of one byte
FEW, ANY = st.sampled_from([0, 97, 255]), st.integers(0, 255)


@given(data=st.data(), letters=st.sampled_from([FEW, ANY]))
@settings(max_examples=150, deadline=None)
def test_every_suffix_tried_finds_the_same(data: st.DataObject, letters: st.SearchStrategy[int]) -> None:
    spellings = data.draw(vocabularies(letters))
    pieces = st.one_of(letters.map(lambda letter: [letter]), st.just([SPECIAL]))
    if spellings:
        pieces = pieces | st.sampled_from(spellings).map(list)
    text = [letter for piece in data.draw(st.lists(pieces, min_size=1, max_size=60)) for letter in piece]
    assert longest(filled(spellings), [text]) == [tried(spellings, text)]


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_rows_and_packed_examples_are_looked_at_alone(data: st.DataObject) -> None:
    spellings = data.draw(vocabularies(FEW))
    text = st.lists(st.one_of(FEW, st.just(SPECIAL)), min_size=1, max_size=30)
    texts = data.draw(st.lists(text, min_size=1, max_size=4))
    ngrams, positions = filled(spellings), torch.tensor([[place for text in texts for place in range(len(text))]])
    expected = [number for text in texts for number in tried(spellings, text)]
    packed = [letter for text in texts for letter in text]
    assert longest(ngrams, [packed, packed], positions) == [expected, expected]
    width = max(map(len, texts))
    padded = [[SPECIAL] * (width - len(text)) + text for text in texts]
    found = longest(ngrams, padded)
    assert [row[width - len(text) :] for row, text in zip(found, texts, strict=True)] == [
        tried(spellings, text) for text in texts
    ]


def test_long_texts_are_looked_up_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    spellings = [b"a" * length for length in (1, 2, 5, 16)] + [b"ba", b"aab"]
    text = list(b"aaaaaaaaaaaaaaaaaaaaaabaaab" * 3)
    for block in (1, 7, 64):
        monkeypatch.setattr(modeling_ngram_bytes, "_BLOCK", block)
        assert longest(filled(spellings), [text]) == [tried(spellings, text)]


def test_a_full_table_is_placed() -> None:
    """Every pair of bytes: 257 states with 256 children each."""
    pairs = [bytes([first, second]) for first in range(256) for second in range(256)]
    text = list(b"\x00\x00\xff\x00ab")
    assert longest(filled(pairs), [text]) == [tried(pairs, text)]


def test_the_table_is_the_same_every_time() -> None:
    spellings = [bytes([first, second, 3]) for first in range(50) for second in range(9)]
    once, again = suffix_trie(spellings), suffix_trie(spellings)
    assert all((left == right).all() for left, right in zip(once, again, strict=True))


@pytest.mark.parametrize("spellings", [[b"a", b"a"], [b""], [b"a" * (LONGEST + 1)]])
def test_other_spellings_are_refused(spellings: list[bytes]) -> None:
    with pytest.raises(ValueError, match="distinct, and have 1 to 16 bytes"):
        suffix_trie(spellings)
