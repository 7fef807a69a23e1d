"""The texts that kitoken is known to read differently are left to the standard engine."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.engines.findings import Findings
from alm_pipeline.tokenization.engines.kitoken import KitokenEngine
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import byte_view


def engine(tokenizer: Tokenizer, folder: Path) -> KitokenEngine:
    return KitokenEngine(tokenizer, byte_view(tokenizer), StandardEngine(tokenizer), Findings(folder, {}))


def test_a_tokenizer_that_kitoken_does_not_read(
    monkeypatch: pytest.MonkeyPatch, byte_level: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    import kitoken

    class Unreadable:
        @staticmethod
        def from_tokenizers(data: bytes) -> None:
            raise BaseException("panicked")

    monkeypatch.setattr(kitoken, "Kitoken", Unreadable)
    with pytest.raises(ValueError, match="can't read the tokenizer: panicked"):
        engine(byte_level.backend_tokenizer, tmp_path)


def test_a_token_that_no_merge_reaches_is_not_taken_for_its_word(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("\u0120", "b"),
        ("a", "\u0120"),
        ("a\u0120", "b"),
    ]  # of `a b` the first merge leaves nothing for the last
    vocabulary = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    standard = StandardEngine(tokenizer)
    texts = ["a b", "xa b", "a bb a", "ab", " b"]
    expected = standard.encode(texts, special_literals=False)
    assert expected[0] == [vocabulary.index("a"), vocabulary.index("\u0120b")]
    assert engine(tokenizer, tmp_path).encode(texts, special_literals=False) == expected


def test_the_tokens_that_it_reads_differently_are_found_out_once(
    byte_level: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    class Unused(StandardEngine):
        def encode(self, texts: Sequence[str], *, special_literals: bool) -> list[list[int]]:
            raise AssertionError("asked again")

    backend = byte_level.backend_tokenizer
    engine(backend, tmp_path)
    later = KitokenEngine(backend, byte_view(backend), Unused(backend), Findings(tmp_path, {}))
    with pytest.raises(AssertionError, match="asked again"):
        later.encode(["a <|im_end|>"], special_literals=False)
