"""Drawn tokenizers: substrings by loops, additive; a pure function of seed and step; every text comes back."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from alm_pipeline.hypernetwork.sampling.pretokenizers import PATTERNS, count_words, splitter
from alm_pipeline.hypernetwork.sampling.sampler import SampledTokenizer, TokenizerSampler, encode
from alm_pipeline.hypernetwork.sampling.settings import Pretokenizer, SamplerConfig
from alm_pipeline.hypernetwork.sampling.stage import (
    read_substrings,
    substrings_folder,
    training_texts,
    write_substrings,
)
from alm_pipeline.hypernetwork.sampling.substrings import Substrings, score_substrings
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.transfer.fvt import PieceCutter, map_vocabulary
from alm_pipeline.vocabulary.byte_view import byte_view, byte_vocabulary
from storage.errors import UserError
from tests import tiny
from tests.corpora import conversations, text_examples

NAMES = sorted(PATTERNS)
TEXT = (
    "    def load(self, path):\n        return self.load('a' * 12345)\n\n"
    "It's The End, isn't it?  10% of 3,200\u00e9\u6771\u4eac\r\n"
)


def loops(words: Mapping[bytes, int], longest: int) -> dict[bytes, int]:
    found = Counter[bytes]()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                found[word[start:end]] += count
    return {text: count * len(text) for text, count in found.items() if count > 1 or len(text) == 1}


@given(st.dictionaries(st.binary(min_size=1, max_size=20), st.integers(1, 2**40), max_size=8), st.integers(1, 16))
def test_scores_are_the_bytes_that_substrings_cover(words: dict[bytes, int], longest: int) -> None:
    found = score_substrings(words, longest, 10_000)
    assert dict(zip(found.spellings, found.scores.tolist(), strict=True)) == loops(words, longest)
    order = [(-score, text) for text, score in zip(found.spellings, found.scores.tolist(), strict=True)]
    assert order == sorted(order)
    fewer = score_substrings(words, longest, 7)
    assert (fewer.spellings, fewer.scores.tolist()) == (found.spellings[:7], found.scores[:7].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_counts_of_parts_add_up(name: Pretokenizer) -> None:
    texts = [*tiny.TEXTS, TEXT]
    whole = count_words(texts, name)
    assert sum((count_words([text], name) for text in texts), Counter[bytes]()) == whole
    assert count_words(texts[:2], name) + count_words(texts[2:], name) == whole
    assert sum(len(word) * count for word, count in whole.items()) == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_split_alike_by_both_libraries(name: Pretokenizer) -> None:
    for text in [*tiny.TEXTS, TEXT]:
        parts = [bytes(map(byte_vocabulary().__getitem__, part)) for part, _ in splitter(name).pre_tokenize_str(text)]
        assert Counter(parts) == count_words([text], name)


def test_ways_of_splitting_differ_where_tokenizers_do() -> None:
    words = {name: count_words([TEXT], name).keys() for name in PATTERNS}
    assert b"(self" in words["cl100k"]
    assert b"(self" not in words["gpt2"]
    assert b"):\n" in words["cl100k"]
    assert {b"123", b"45"} <= words["cl100k"]
    assert b" 12345" in words["gpt2"]
    assert {b"1", b"5"} <= words["digits"]
    assert b"self.load('a'" not in words["digits"]
    assert b" self.load('a'" in words["words"]


@pytest.fixture(scope="module")
def substrings() -> dict[Pretokenizer, Substrings]:
    texts = [*tiny.TEXTS, TEXT] * 3
    return {name: score_substrings(count_words(texts, name), 16, 2000) for name in PATTERNS}


def sampler(
    substrings: Mapping[Pretokenizer, Substrings], source: PreTrainedTokenizerFast, seed: int = 0, **settings: object
) -> TokenizerSampler:
    config = SamplerConfig.model_validate({"min_tokens": 300, "max_tokens": 900, **settings})
    loaded = LoadedTokenizer.of(source)
    return TokenizerSampler(substrings, loaded, loaded.view.size, config, seed)


def content(drawn: SampledTokenizer) -> str:
    text = repr((drawn.pretokenizer, drawn.spellings, drawn.logprobs.tolist()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_step_draws_the_same_tokenizer_always(
    substrings: dict[Pretokenizer, Substrings], byte_level: PreTrainedTokenizerFast
) -> None:
    first, second = (sampler(substrings, byte_level) for _ in range(2))
    drawn = [content(first.sample(step)) for step in range(8)]
    # in another order, and not each: no state is carried along
    assert [content(second.sample(step)) for step in (5, 2)] == [drawn[5], drawn[2]]
    assert len(set(drawn)) == 8
    assert content(sampler(substrings, byte_level, seed=1).sample(0)) not in drawn
    assert drawn[:2] == ["031929e851517993", "44d3e96a0ba3991e"]


def test_sizes_are_within_bounds_and_all_ways_are_drawn(
    substrings: dict[Pretokenizer, Substrings], byte_level: PreTrainedTokenizerFast
) -> None:
    made = sampler(substrings, byte_level)
    drawn = [made.sample(step) for step in range(60)]
    sizes = [len(each.chosen) for each in drawn]
    assert 300 <= min(sizes) < 400
    assert 800 < max(sizes) <= 900
    assert {each.pretokenizer for each in drawn} == set(PATTERNS)
    assert len({each.size - len(each.chosen) for each in drawn}) == 1  # the special tokens


def test_without_noise_the_substrings_that_cover_most_are_drawn(
    substrings: dict[Pretokenizer, Substrings], byte_level: PreTrainedTokenizerFast
) -> None:
    made = sampler(substrings, byte_level, noise=0.0, min_tokens=400, max_tokens=400, pretokenizers=["digits"])
    first, second = made.sample(0), made.sample(1)
    assert content(first) == content(second)
    longer = [text for text in substrings["digits"].spellings if len(text) > 1][: 400 - 256]
    assert set(first.spellings[256:400]) == set(longer)


@pytest.mark.parametrize("name", NAMES)
def test_every_text_comes_back(
    name: Pretokenizer, substrings: dict[Pretokenizer, Substrings], byte_level: PreTrainedTokenizerFast
) -> None:
    made = sampler(substrings, byte_level, pretokenizers=[name])
    texts = [*ADVERSARIAL_TEXTS, *tiny.TEXTS, TEXT, "".join(map(chr, range(256)))]
    for step in range(3):
        drawn = made.sample(step)
        assert {bytes([byte]) for byte in range(256)} <= set(drawn.spellings[:256])
        for text, ids in zip(texts, encode(drawn, texts), strict=True):
            assert b"".join(drawn.spellings[id_] for id_ in ids) == text.encode()


def test_its_bytes_and_pieces_are_those_of_an_ordinary_tokenizer(
    substrings: dict[Pretokenizer, Substrings], byte_level: PreTrainedTokenizerFast
) -> None:
    """As a saved tokenizer without special tokens, which `byte_view` and `map_vocabulary` read."""
    drawn = sampler(substrings, byte_level).sample(3)
    saved = Tokenizer.from_str(drawn.tokenizer.to_str())
    view, count = byte_view(saved), len(drawn.chosen)
    assert view.spelling == drawn.spellings[:count]
    assert np.array_equal(view.starts_word, drawn.view.starts_word[:count])
    assert np.array_equal(view.lengths, drawn.lengths[:count])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=saved)
    mapping = map_vocabulary(LoadedTokenizer.of(byte_level), LoadedTokenizer.of(wrapped))
    starts, pieces = drawn.pieces()
    several = {id_: tuple(pieces[starts[k] : starts[k + 1]].tolist()) for k, id_ in enumerate(drawn.new.tolist())}
    for id_ in range(count):
        expected = mapping.pieces[id_]
        assert expected == several.get(id_, (int(drawn.copies[id_]),) if drawn.copies[id_] >= 0 else ())
    specials = [byte_level.convert_ids_to_tokens(id_) for id_ in drawn.copies[count:].tolist()]
    assert specials == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize("tokenizer", ["byte_level", "sentencepiece"])
def test_many_texts_are_cut_as_each_alone(tokenizer: str) -> None:
    made = tiny.byte_level_tokenizer() if tokenizer == "byte_level" else tiny.sentencepiece_tokenizer()
    cutter = PieceCutter(LoadedTokenizer.of(made), len(made))
    texts = [b" quick", b"jumps over", "\u6771".encode()[:2], b"<bos>", b"<|im_end|>", b"  ", b"\n\n", b"q", b"\xff"]
    assert cutter.cut_all(texts) == [cutter.cut(text, reads_literals=False) for text in texts]


def test_the_stage_counts_training_texts_once(tmp_path: Path) -> None:
    examples = text_examples(tmp_path, [[TEXT, *tiny.TEXTS[:2]], [TEXT] * 3])
    settings = SamplerConfig(candidates=500, pretokenizers=("gpt2", "words"), min_tokens=300, max_tokens=400)
    folder = substrings_folder(examples, settings)
    manifest = write_substrings(folder, examples, settings)
    assert manifest == write_substrings(folder, examples, settings)
    found = read_substrings(folder)
    texts = [TEXT, *tiny.TEXTS[:2], TEXT, TEXT, TEXT]
    for name in settings.pretokenizers:
        expected = score_substrings(count_words(texts, name), 16, 500)
        assert (found[name].spellings, found[name].scores.tolist()) == (expected.spellings, expected.scores.tolist())
    other = settings.model_copy(update={"noise": 0.0, "max_tokens": 1000})
    assert substrings_folder(examples, other).name == folder.name
    assert substrings_folder(examples, settings.model_copy(update={"longest": 8})).name != folder.name


def test_the_bytes_that_are_counted_are_spread_over_the_shards(tmp_path: Path) -> None:
    examples = text_examples(tmp_path, [["a" * 100] * 10, ["b" * 100] * 10])
    parts = list(training_texts(examples, 1024))
    assert [(len(part), part[0][0]) for part in parts] == [(5, "a"), (5, "b")]


def test_conversations_are_refused(tmp_path: Path) -> None:
    examples = conversations(tmp_path, [[{"role": "user", "content": "Hello"}]])
    with pytest.raises(UserError, match=r"holds conversations.*leave corpus\.messages out"):
        write_substrings(substrings_folder(examples, SamplerConfig()), examples, SamplerConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_tokens": 500, "max_tokens": 400}, "min_tokens 500 is above max_tokens 400"),
        ({"pretokenizers": ["gpt2", "gpt2"]}, "one is there twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig.model_validate(settings)
