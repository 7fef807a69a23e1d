"""Next bytes, held to sums over all token sequences, and to byte-prefix sums."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.calibration.next_bytes import END, NextBytes, draw_places, next_byte_scores
from alm_pipeline.exactness.branches import BranchModel
from alm_pipeline.exactness.prefix_sums import Stretch, prefix_sums
from alm_pipeline.exactness.sorted_vocabulary import SortedVocabulary
from alm_pipeline.models.tokenizer import LoadedTokenizer
from storage.errors import UserError
from tests import tiny

SPELLINGS = ("a", "b", "c", "ab", "abc", "bc", "<end>")


def small() -> tuple[PreTrainedModel, LoadedTokenizer]:
    """Tokens of one to three of three letters, and one that ends texts."""
    vocabulary = {spelling: id_ for id_, spelling in enumerate(SPELLINGS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "c"), ("b", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")
    return tiny.tiny_llama(len(SPELLINGS)).eval(), LoadedTokenizer.of(fast)


def by_enumeration(model: PreTrainedModel, tokens: list[int], text: bytes) -> np.ndarray:
    """The same sums, over the beginnings of the canonical tokens, by the model's own logits and a loop."""
    found = np.zeros(257)
    for kept in range(1, len(tokens) + 1):
        with torch.no_grad():
            logprobs = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1).numpy()
        before = sum(logprobs[k - 1, tokens[k]] for k in range(1, kept))
        rest = text[len(b"".join(SPELLINGS[id_].encode() for id_ in tokens[:kept])) :]
        for id_, spelling in enumerate(SPELLINGS[:-1]):
            token = spelling.encode()
            if token.startswith(rest) and len(token) > len(rest):
                found[token[len(rest)]] += np.exp(before + logprobs[kept - 1, id_])
        if not rest:
            found[END] += np.exp(before + logprobs[kept - 1, len(SPELLINGS) - 1])
    return found / found.sum()


@pytest.mark.parametrize("text", ["a", "ab", "cab", "abcab", "bcabba", "cabcabcabbcab"])
def test_the_next_byte_is_the_sum_over_tokens_that_reach_it(text: str) -> None:
    model, tokenizer = small()
    ids = tokenizer.encoding_backend.encode(text, add_special_tokens=False).ids
    found = NextBytes(model, tokenizer).after(text)
    assert found is not None
    assert found == pytest.approx(by_enumeration(model, ids, text.encode()), abs=1e-6)
    assert found.sum() == pytest.approx(1)


def test_bytes_have_the_ratio_of_byte_prefix_sums(llama_folder: str) -> None:
    """Up to what leaves the canonical tokens, by which the sums of other spellings are larger."""
    tokenizer = LoadedTokenizer(llama_folder)
    model = tiny.tiny_llama(len(tokenizer.fast)).eval()
    branch = BranchModel(model, tokenizer)
    vocabulary = SortedVocabulary.of(tokenizer.view, branch.vocabulary)
    text, predicted = "The quick brown", NextBytes(model, tokenizer)
    found = predicted.after(text)
    assert found is not None
    ratios = []
    for byte in b" s":
        ids = tokenizer.encoding_backend.encode(text + chr(byte), add_special_tokens=False).ids
        content = (text + chr(byte)).encode()
        first = len(vocabulary.spellings[ids[0]])
        sums = prefix_sums(Stretch(content[first:], 1, ids[1:]), vocabulary, branch.after(ids), tolerance=1e-9, most=0)
        ratios.append(float(np.exp(sums.logprobs[-1])))
    assert found[ord(" ")] / found[ord("s")] == pytest.approx(ratios[0] / ratios[1], rel=0.05)


def test_a_model_of_bytes_says_its_own_next_byte() -> None:
    tokenizer = LoadedTokenizer.of(tiny.byte_level_tokenizer(vocab_size=259, texts=["x"]))
    model = tiny.tiny_llama(len(tokenizer.fast)).eval()
    text = "é 12, né?"
    ids = tokenizer.encoding_backend.encode(text, add_special_tokens=False).ids
    with torch.no_grad():
        own = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()
    found = NextBytes(model, tokenizer).after(text)
    assert found is not None
    spelled = [bytes(spelling) for spelling in tokenizer.view.spelling]
    for byte, id_ in itertools.product(range(256), range(len(spelled))):
        if spelled[id_] == bytes([byte]) and not tokenizer.view.special[id_]:
            assert found[byte] == pytest.approx(own[id_], abs=1e-6)


def test_places_are_drawn_alike_for_all_and_read_or_not(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    texts = [{"text": "Änderung, naïve café. 東京"}, {"text": "The quick brown fox"}, {"text": "x"}]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    url, tokenizers = str(tmp_path / "texts.jsonl"), [LoadedTokenizer(name) for name in (llama_folder, gemma_folder)]
    places = draw_places(url, "text", 10, 5, tokenizers, seed=1)
    again = draw_places(url, "text", 10, 5, tokenizers, seed=1)
    assert list(places.befores) == list(again.befores)
    assert places.clusters.tolist() == [0] * 5 + [1] * 5
    for before, byte, cluster in zip(places.befores, places.bytes, places.clusters, strict=True):
        whole = texts[cluster]["text"]
        assert whole.startswith(before)
        assert whole[len(before)].encode()[0] == byte
    logprobs, readable = next_byte_scores(tiny.tiny_llama(len(tokenizers[0].fast)), tokenizers[0], places)
    assert readable.all()
    assert np.exp(logprobs).sum(1) == pytest.approx(np.ones(10))
    (tmp_path / "short.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="no text of two characters"):
        draw_places(str(tmp_path / "short.jsonl"), "text", 10, 5, tokenizers)
