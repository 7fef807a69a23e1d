"""Byte-prefix sums against a listing of all token sequences."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.exactness.prefix_sums import PrefixSums, Stretch, prefix_sums
from alm_pipeline.exactness.sorted_vocabulary import SortedVocabulary
from tests.alm_pipeline.exactness.oracle import TableModel

LETTERS = b"ab \n\xff"
VOCABULARY = [b"a", b"b", b" ", b"\n", b"\xff", b"ab", b" a", b"ab ", b"b\n", b"aba", b"\xff\xff", b"a"]


def sorted_vocabulary(spellings: Sequence[bytes], specials: int = 1) -> SortedVocabulary:
    order = sorted(range(len(spellings)), key=lambda id_: spellings[id_])
    special = np.arange(len(spellings), len(spellings) + specials)
    words = (*spellings, *[b""] * specials)
    return SortedVocabulary(words, np.array(order), special, [spellings[id_] for id_ in order])


def spelled(spellings: Sequence[bytes], content: bytes) -> list[int]:
    """A tokenization: always the longest token, the first of equals."""
    ids: list[int] = []
    while content:
        fitting = [id_ for id_, text in enumerate(spellings) if content.startswith(text)]
        ids.append(max(fitting, key=lambda id_: (len(spellings[id_]), -id_)))
        content = content[len(spellings[ids[-1]]) :]
    return ids


def sums_of(model: TableModel, content: bytes, **options: float) -> PrefixSums:
    ids = [model.size - 1, *spelled(model.spellings, content)]
    stretch = Stretch(content, 1, ids[1:])
    vocabulary = sorted_vocabulary(model.spellings, model.specials)
    return prefix_sums(stretch, vocabulary, model.after(ids), **{"rejoined": None, **options})  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(min_size=2, max_size=3).map(lambda t: bytes(LETTERS[k % len(LETTERS)] for k in t)), max_size=7),
    st.lists(st.sampled_from(list(LETTERS)), min_size=1, max_size=6).map(bytes),
    st.integers(0, 1000),
    st.sampled_from([0.5, 2.0, 6.0]),
)
def test_all_sequences_followed_is_exact(longer: list[bytes], content: bytes, seed: int, spikes: float) -> None:
    model = TableModel([*(bytes([byte]) for byte in LETTERS), *longer], 2, seed, spikes)
    context = [model.size - 1]
    sums = sums_of(model, content, tolerance=0.0, most=10_000)
    exact = [model.begins_with(context, content[:place]) for place in range(len(content) + 1)]
    boundary = [model.begins_with_boundary(context, content[:place]) for place in range(len(content) + 1)]
    np.testing.assert_allclose(np.exp(sums.logprobs), exact, rtol=1e-10)
    np.testing.assert_allclose(np.exp(sums.boundary_logprobs), boundary, rtol=1e-10)
    assert sums.left_out.max() == 0


@pytest.mark.parametrize("seed", range(3))
def test_sequences_that_rejoined_are_exact_for_a_model_that_remembers_no_more(seed: int) -> None:
    """Of a model that only sees its last two tokens, sequences with the same two have the same future."""
    model, content = TableModel(VOCABULARY, 1, seed, 3.0, memory=2), b"aba abab\n\xffa"
    sums = sums_of(model, content, tolerance=0.0, most=100_000, rejoined=2)
    exact = sums_of(model, content, tolerance=0.0, most=100_000)
    np.testing.assert_allclose(sums.logprobs, exact.logprobs, rtol=1e-10)
    np.testing.assert_allclose(sums.boundary_logprobs, exact.boundary_logprobs, rtol=1e-10)
    assert sums.followed < exact.followed


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-3])
@pytest.mark.parametrize("seed", range(4))
def test_next_bytes_add_up_to_the_prefix_but_for_what_is_left_out(tolerance: float, seed: int) -> None:
    """What a sum reports as left out is exactly what the 256 next bytes and the special tokens lack."""
    model, content = TableModel(VOCABULARY, 1, seed, 2.0), b"aba ab\n\xff\xffab"
    sums = sums_of(model, content, tolerance=tolerance)
    assert sums.left_out.max() <= tolerance
    for place in range(len(content)):
        # the sums of longer texts, one for each next byte, with the same sequences followed
        followed = _sums_over_next_bytes(model, content[:place], tolerance)
        np.testing.assert_allclose(followed[0], followed[1], rtol=1e-9)


def _sums_over_next_bytes(model: TableModel, content: bytes, tolerance: float) -> tuple[float, float]:
    """Σ over next bytes and special tokens, and P(content) without what is left out at its end, by the definition."""
    ids = [model.size - 1, *spelled(model.spellings, content)]
    vocabulary = sorted_vocabulary(model.spellings)
    next_tokens, rows = model.after(ids), {}

    def recorded(paths):  # type: ignore[no-untyped-def]
        for path, row in zip(paths, next_tokens(paths), strict=True):
            rows[path] = row
            yield row

    sums = prefix_sums(Stretch(content, 1, ids[1:]), vocabulary, recorded, tolerance=tolerance, rejoined=None)
    total = 0.0
    for path, row in rows.items():
        tokens = [*ids[1 : path.kept], *path.others]
        weight = sum(model.row([*ids[:1], *tokens[:k]])[token] for k, token in enumerate(tokens))
        end = sum(len(model.spellings[token]) for token in tokens)
        rest = content[end:]
        longer = [id_ for id_, text in enumerate(model.spellings) if text.startswith(rest) and len(text) > len(rest)]
        specials = [len(model.spellings)] if not rest else []
        total += float(np.exp(weight) * np.exp(row[longer + specials]).sum())
    return total, float(np.exp(sums.logprobs[-1]) * (1 - sums.left_out[-1]))


def test_a_budget_that_is_used_up_is_reported() -> None:
    model, content = TableModel(VOCABULARY, 1, 1, 2.0), b"aba ab\n\xff\xffab"
    without, some = (sums_of(model, content, tolerance=1e-6, most=most) for most in (0, 5))
    assert (without.followed, some.followed) == (0, 5)
    assert without.left_out.max() > 1e-6 < some.left_out.max()
    exact = [model.begins_with([model.size - 1], content[:place]) for place in range(len(content) + 1)]
    assert np.all(np.exp(without.logprobs) <= np.array(exact) * (1 + 1e-12))
    assert without.logprobs[-1] < some.logprobs[-1]


def test_the_places_of_boundaries_are_followed_until_the_boundary_is_known() -> None:
    model, content = TableModel(VOCABULARY, 1, 3, 3.0), b"abaab"
    everywhere = np.ones(len(content) + 1, np.bool_)
    sums = sums_of(model, content, tolerance=1e-3, boundaries=everywhere)  # type: ignore[arg-type]
    assert sums.boundary_left_out.max() <= 1e-3
    exact = model.begins_with_boundary([model.size - 1], content)
    assert np.exp(sums.boundary_logprobs[-1]) == pytest.approx(exact, rel=1e-2)


def test_a_stretch_far_below_the_smallest_float_stays_exact() -> None:
    model = TableModel([b"a", b"b"], 1, 0, 4.0)
    sums = sums_of(model, b"ab" * 600)
    ids = [2, *spelled(model.spellings, b"ab" * 600)]
    rows = model.after(ids)
    from alm_pipeline.exactness.prefix_sums import TokenPath

    expected = sum(next(rows([TokenPath(k)]))[ids[k]] for k in range(1, len(ids)))
    assert sums.logprobs[-1] == pytest.approx(expected, rel=1e-12)
    assert expected < -1000


def test_sorted_vocabulary_finds_all_tokens_that_begin_with_bytes() -> None:
    vocabulary = sorted_vocabulary(VOCABULARY)
    for start in [*VOCABULARY, b"\xff\xff\xff", b"c", b"ba"]:
        found = vocabulary.find(start)
        expected = {id_ for id_, text in enumerate(VOCABULARY) if text.startswith(start)}
        equal = {id_ for id_, text in enumerate(VOCABULARY) if text == start}
        assert set(vocabulary.ids(range(found.start, found.end))) == expected
        assert set(vocabulary.ids(range(found.start, found.equal_end))) == equal
