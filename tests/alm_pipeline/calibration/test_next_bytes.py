"""Next bytes, held to sums over all token sequences, and to byte-prefix sums."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.calibration.calibrate import ComparedModels, Scored, TextCalibration, TextSource
from alm_pipeline.calibration.next_bytes import END, NextBytes
from alm_pipeline.calibration.places import draw_places
from alm_pipeline.calibration.report.settings import ReportSettings
from alm_pipeline.exactness.branches import BranchModel
from alm_pipeline.exactness.prefix_sums import Stretch, prefix_sums
from alm_pipeline.exactness.sorted_vocabulary import SortedVocabulary
from alm_pipeline.inspection.head import head
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from storage.dataset import Dataset
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
    assert not isinstance(found, str)
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
    assert not isinstance(found, str)
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
    assert not isinstance(found, str)
    spelled = [bytes(spelling) for spelling in tokenizer.view.spelling]
    for byte, id_ in itertools.product(range(256), range(len(spelled))):
        if spelled[id_] == bytes([byte]) and not tokenizer.view.special[id_]:
            assert found[byte] == pytest.approx(own[id_], abs=1e-6)


TEXTS = ("Änderung, naïve café. 東京", "The quick brown fox", "jumps over", "the lazy dog. 12 é")


def texts_of(folder: Path) -> str:
    rows = [{"text": text} for text in (*TEXTS, "x")]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "texts.jsonl")


def test_places_are_drawn_alike_for_all(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    url, tokenizers = texts_of(tmp_path), [LoadedTokenizer(name) for name in (llama_folder, gemma_folder)]
    places = draw_places(url, "text", 10, 5, tokenizers, seed=1)
    assert places == draw_places(url, "text", 10, 5, tokenizers, seed=1)
    assert places != draw_places(url, "text", 10, 5, tokenizers, seed=2)
    assert [place.text for place in places] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    assert len({place.id for place in places}) == 20
    for place in places:
        assert TEXTS[place.text].startswith(place.before)
        assert TEXTS[place.text][len(place.before)].encode()[0] == place.byte
    (tmp_path / "short.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="no text of two characters"):
        draw_places(str(tmp_path / "short.jsonl"), "text", 10, 5, tokenizers)


def calibration(names: list[str], url: str, root: Path) -> TextCalibration:
    return TextCalibration(ComparedModels(tuple(names)), TextSource(url, examples=10, places=5), str(root))


def test_what_is_stored_is_what_the_models_predict(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    found = calibration([llama_folder, gemma_folder], texts_of(tmp_path), tmp_path / "store")
    found.run()
    for scored, name in zip(found.scored, (llama_folder, gemma_folder), strict=True):
        reference = ModelReference(name)
        own = NextBytes(reference.load("float32"), reference.tokenizer)
        for place, row in zip(found.places.read_shard(0).to_pylist(), _rows(scored), strict=True):
            expected = own.after(place["before"])
            if isinstance(expected, str):
                assert (row["dropped"], row["logprobs"]) == (expected, [])
            else:
                assert np.exp(row["logprobs"]) == pytest.approx(expected)
    report = found.report(ReportSettings(resamples=20))
    assert report.questions["all"] + sum(report.left_out.values()) == 20
    [shown, *_] = head(found.scored[0].scoring.scores.url, 1).rows
    assert shown["before"] == found.places.read_shard(0)["before"][0].as_py()
    assert shown["bytes"][0]["byte"] == shown["byte"]
    assert shown["bytes"][1]["logprob"] == max(_rows(found.scored[0])[0]["logprobs"])


def test_places_that_one_model_can_not_read_are_left_out_for_all_by_reason(llama_folder: str, tmp_path: Path) -> None:
    tokenizer = LoadedTokenizer(llama_folder)
    short = tiny.tiny_llama(len(tokenizer.fast))
    short.config.max_position_embeddings = 6
    tiny.save(tmp_path / "short", short, tokenizer.fast)
    found = calibration([llama_folder, str(tmp_path / "short")], texts_of(tmp_path), tmp_path / "store")
    found.run()
    dropped = found.scored[1].scoring.scores.complete_manifest().dropped
    assert 0 < dropped["over_context"] < 20
    assert found.report(ReportSettings(resamples=20)).left_out == dropped


class _Killed(BaseException):
    pass


def test_a_run_that_is_killed_anywhere_continues_to_the_same_bytes(
    llama_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = texts_of(tmp_path)
    monkeypatch.setattr("alm_pipeline.calibration.places.PLACES_PER_SHARD", 4)
    calibration([llama_folder], url, tmp_path / "whole").run()
    whole = _files(tmp_path / "whole")
    assert len([name for name in whole if name.endswith(".parquet")]) == 10
    write = Dataset.write_shard
    left = 1

    def killed_after(self: Dataset, *arguments: Any, **named: Any) -> Any:
        nonlocal left
        if not left:
            left = 1
            raise _Killed
        left -= 1
        return write(self, *arguments, **named)

    monkeypatch.setattr(Dataset, "write_shard", killed_after)
    kills = 0
    while True:
        try:
            calibration([llama_folder], url, tmp_path / "killed").run()
            break
        except _Killed:
            kills += 1
    assert kills == 9
    assert _files(tmp_path / "killed") == whole


def _rows(scored: Scored) -> list[dict[str, Any]]:
    return scored.scoring.scores.read_shard(0).to_pylist()


def _files(root: Path) -> dict[str, bytes]:
    shards = (file for file in root.rglob("*.parquet"))
    return {str(file.relative_to(root)): file.read_bytes() for file in shards}
