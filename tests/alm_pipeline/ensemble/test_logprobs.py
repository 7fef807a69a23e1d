"""Log-probabilities of texts come from the same distribution as generation."""

import copy
import math

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

import alm_pipeline.ensemble.model as model_module
from alm_pipeline.ensemble.loading import LoadedMember, ensemble_of, load
from alm_pipeline.ensemble.logprobs import id_logprobs, text_bits_per_byte, text_logprobs
from alm_pipeline.models.demo.models import check_installed
from storage.errors import UserError
from tests import tiny

TEXTS = [*tiny.TEXTS[1:], "a", "Привет"]


@pytest.mark.parametrize("vocabulary", ["shared", "mined"])
@pytest.mark.parametrize("mean", ["probabilities", "logprobs"])
def test_scores_are_those_of_the_logits(  # in pieces, of rows of different lengths
    llama_folder: str, gemma_folder: str, vocabulary: str, mean: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "_PIECE_ELEMENTS", 3000)
    parts = [LoadedMember(*load(llama_folder)), LoadedMember(*load(gemma_folder), 2.0)]
    for order in (parts, parts[::-1]):
        ensemble = ensemble_of(order, mean, vocabulary)  # type: ignore[arg-type]
        scores = text_logprobs(ensemble, TEXTS, batch_tokens=100)
        nats, covered = 0.0, 0
        for text, score in zip(TEXTS, scores, strict=True):
            logits = ensemble(torch.from_numpy(score.token_ids[None]).long()).logits[0]
            expected = logits[:-1].gather(-1, torch.tensor(score.token_ids[1:, None]).long()).squeeze(-1)
            np.testing.assert_allclose(score.logprobs[1:], expected, atol=1e-5)
            assert math.isnan(score.logprobs[0])
            assert score.byte_lengths.sum() == len(text.encode())
            nats -= float(expected.sum())
            covered += int(score.byte_lengths[1:].sum())
        assert text_bits_per_byte(scores) == pytest.approx(nats / math.log(2) / covered, rel=1e-5)


def test_long_texts_are_scored_in_windows(byte_level: PreTrainedTokenizerFast) -> None:
    part = LoadedMember(tiny.tiny_gpt2(len(byte_level)).eval(), byte_level)  # takes 128 tokens
    ensemble = ensemble_of([part, part])
    ids = np.arange(300, dtype=np.int32) % len(byte_level)
    (found,) = id_logprobs(ensemble, [ids])
    assert np.isfinite(found[1:]).all()
    with torch.no_grad():
        first = part.model(torch.tensor(ids[None, :128]).long()).logits[0].log_softmax(-1)
        # windows of 128 with 64 tokens of context: the second one scores the tokens from 128 to 191
        second = part.model(torch.tensor(ids[None, 64:192]).long()).logits[0].log_softmax(-1)
    np.testing.assert_allclose(found[1:128], first[range(127), ids[1:128]], atol=1e-5)
    np.testing.assert_allclose(found[128:192], second[range(63, 127), ids[128:192]], atol=1e-5)


def test_a_token_that_is_not_shared_is_impossible(llama_folder: str, gemma_folder: str) -> None:
    ensemble = ensemble_of([LoadedMember(*load(llama_folder)), LoadedMember(*load(gemma_folder))])
    shared = set(ensemble.shared_L.tolist())
    missing = next(id_ for id_ in range(300, ensemble.config.vocab_size) if id_ not in shared)
    (found,) = id_logprobs(ensemble, [np.array([*ensemble.ids("The"), missing], np.int32)])
    assert found[-1] == -np.inf


def test_a_space_that_the_tokenizer_puts_before_a_text_is_not_counted(sentencepiece: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(sentencepiece)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    part = LoadedMember(tiny.tiny_llama(len(tokenizer)), tokenizer)
    texts = ["The fox jumps.", " two", "\u6771\u4eac"]
    scores = text_logprobs(ensemble_of([part, part]), texts)
    assert [score.byte_lengths.sum() for score in scores] == [len(text.encode()) for text in texts]


def test_nothing_scores_nothing(llama_folder: str) -> None:
    ensemble = ensemble_of([LoadedMember(*load(llama_folder))])
    assert [len(row.logprobs) for row in text_logprobs(ensemble, ["", "a"])] == [0, 1]
    assert text_logprobs(ensemble, []) == []


def test_the_real_smollm2_with_itself() -> None:
    try:
        check_installed("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))
    model, tokenizer = load("demo:smollm2-135m-instruct", dtype="bfloat16")
    ensemble = ensemble_of([LoadedMember(model, tokenizer), LoadedMember(model, tokenizer, 3.0)])
    inputs = ensemble.encode(["Natalia sold 48 clips in April, and"])
    settings = {"do_sample": False, "max_new_tokens": 8}
    assert torch.equal(ensemble.generate(**inputs, **settings), model.generate(**inputs, **settings))
