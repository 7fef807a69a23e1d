"""The level of new tokens: what it is by definition, and where the rows that have it end up."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.evaluation.bits_per_byte import TextTokens
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.transfer.bytes.byte_model import untie
from alm_pipeline.transfer.level.level import apply_level, set_level
from alm_pipeline.transfer.level.texts import LONGEST, SAMPLE, sample_texts
from alm_pipeline.transfer.swap import embedding_tables, swap_tokenizer
from storage.errors import UserError
from tests import tiny

TEXTS = (*tiny.TEXTS, "dog lazy the over jumps fox brown quick", "72 = 24 + 48 ?sell she did many How")


def read(tokenizer: PreTrainedTokenizerFast) -> TextTokens:
    batch = ByteEncoder(LoadedTokenizer.of(tokenizer)).encode(TEXTS)
    spans = [slice(*span) for span in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    return TextTokens([batch.token_ids[span] for span in spans], batch.byte_lengths, batch.kinds)


def with_bias(rows: int) -> PreTrainedModel:
    model = tiny.tiny_llama(rows)
    model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, rows))
    return model


def untied_gemma(rows: int) -> PreTrainedModel:
    model = tiny.tiny_gemma(rows)
    untie(model)
    return model


MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "tied": tiny.tiny_llama,
    "untied": lambda rows: tiny.tiny_llama(rows, tied=False),
    "scaled embedding, capped logits": tiny.tiny_gemma,
    "the same, untied": untied_gemma,
    "short context": tiny.tiny_gpt2,
    "head with a bias": with_bias,
}


class Moved:
    """A tiny model with another tokenizer, before and after its level is set."""

    def __init__(self, make: Callable[[int], PreTrainedModel], level: Any, dtype: torch.dtype = torch.float32) -> None:
        source, self.target = tiny.byte_level_tokenizer(), tiny.byte_level_tokenizer(420, TEXTS[-2:] + TEXTS[:1])
        self.model = make(len(source)).to(dtype).eval()
        result = swap_tokenizer(self.model, LoadedTokenizer.of(source), LoadedTokenizer.of(self.target))
        self.new = torch.from_numpy(result.new_V)
        self.texts = read(self.target)
        self.before, self.loss_before = self.tables(), self.loss()
        self.found = set_level(self.model, result.new_V, lambda: self.texts, level)
        self.after, self.loss_after = self.tables(), self.loss()

    def tables(self) -> dict[str, torch.Tensor]:
        return {table.name: table.value.detach().clone() for table in embedding_tables(self.model)}

    @torch.no_grad()
    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, V] log-probabilities and [N] tokens, by transformers alone. The first token of a text has none."""
        logprobs, tokens = [], []
        for ids in self.texts.ids:
            ids_1S = torch.from_numpy(ids[: self.model.config.max_position_embeddings].astype(np.int64))[None]
            logprobs.append(self.model(input_ids=ids_1S).logits[0, :-1].double().log_softmax(-1))
            tokens.append(ids_1S[0, 1:])
        return torch.cat(logprobs), torch.cat(tokens)

    def loss(self) -> float:
        logprobs, tokens = self.predictions()
        return -float(logprobs.gather(-1, tokens[:, None]).sum())

    def bits(self, nats: float) -> float:
        size = sum(
            int(lengths[1 : self.model.config.max_position_embeddings].sum())
            for lengths in np.split(self.texts.byte_lengths, np.cumsum(list(map(len, self.texts.ids)))[:-1])
        )
        return nats / math.log(2) / size


@pytest.fixture(scope="module", params=MODELS)
def moved(request: pytest.FixtureRequest) -> Moved:
    return Moved(MODELS[request.param], "measured")


def test_the_texts_are_more_likely_by_what_is_reported(moved: Moved) -> None:
    assert moved.found
    assert moved.loss_after < moved.loss_before
    assert moved.found.before == pytest.approx(moved.bits(moved.loss_before), rel=1e-4)
    assert moved.found.after == pytest.approx(moved.bits(moved.loss_after), rel=1e-4)


def test_only_new_rows_of_the_head_move_and_all_by_the_same(moved: Moved) -> None:
    has_bias = any(name.endswith("bias") for name in moved.before)
    head = next(name for name in reversed(moved.before) if name.endswith("bias") == has_bias)
    for name, before in moved.before.items():
        after = moved.after[name]
        if name == head:
            assert torch.equal(after[~moved.new], before[~moved.new])
            offsets = (before - after)[moved.new].reshape(int(moved.new.sum()), -1)
            torch.testing.assert_close(offsets, offsets[:1].expand_as(offsets), rtol=1e-4, atol=1e-5)
            assert offsets.abs().max() > 0
        else:
            assert torch.equal(after, before)


def test_new_tokens_are_as_likely_as_they_are_frequent() -> None:
    """With a bias, which the level is exactly: the mean probability of new tokens is their share of the texts."""
    moved = Moved(with_bias, "measured")
    logprobs, tokens = moved.predictions()
    share = (float(moved.new[tokens].sum()) + 0.5) / (len(tokens) + 1)
    assert float(logprobs[:, moved.new].exp().sum(-1).mean()) == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("nats", [2.0, -1.5])
def test_a_number_is_what_logits_lose(nats: float) -> None:
    moved = Moved(with_bias, nats)
    assert moved.found is not None
    assert moved.found.record() == {"nats": nats}
    bias = [tables["lm_head.bias"][moved.new] for tables in (moved.before, moved.after)]
    torch.testing.assert_close(bias[0] - bias[1], torch.full_like(bias[0], nats))


def test_another_copy_follows() -> None:
    """As the other processes of a training do."""
    first, second = Moved(tiny.tiny_llama, "measured"), Moved(tiny.tiny_llama, "none")
    assert first.found is not None
    assert second.found is None
    apply_level(second.model, second.new.numpy(), first.found)
    for name, value in second.tables().items():
        assert torch.equal(value, first.after[name])


def test_weights_in_bfloat16_keep_their_dtype() -> None:
    moved = Moved(tiny.tiny_llama, "measured", torch.bfloat16)
    assert moved.model.dtype == torch.bfloat16
    assert moved.loss_after < moved.loss_before


def _not_read() -> TextTokens:
    raise AssertionError("the texts are not needed")


@pytest.mark.parametrize("level", ["measured", "none", 1.0])
def test_a_model_without_new_tokens_stays_as_it_is(level: Any) -> None:
    model = tiny.tiny_llama(400)
    assert set_level(model, np.zeros(400, bool), _not_read, level) is None


def test_none_changes_nothing() -> None:
    assert set_level(tiny.tiny_llama(400), np.ones(400, bool), _not_read, "none") is None


def test_texts_without_a_prediction_change_nothing() -> None:
    texts = TextTokens([np.array([3], np.int32)], np.array([1], np.int32), np.array([0], np.uint8))
    assert set_level(tiny.tiny_llama(400), np.ones(400, bool), lambda: texts, "measured") is None


@pytest.mark.bad_input
def test_damaged_weights_are_refused() -> None:
    model = tiny.tiny_llama(400)
    model.model.norm.weight.data[0] = math.inf
    with pytest.raises(UserError, match="NaN or infinite"):
        set_level(model, np.arange(400) % 2 == 0, lambda: read(tiny.byte_level_tokenizer()), "measured")


def test_the_sample_is_short_and_read_by_every_tokenizer() -> None:
    for tokenizer in (tiny.byte_level_tokenizer(), tiny.sentencepiece_tokenizer()):
        texts = sample_texts(LoadedTokenizer.of(tokenizer))
        assert sum(map(len, texts.ids)) == len(texts.kinds) == len(texts.byte_lengths)
        assert max(map(len, texts.ids)) <= LONGEST
    assert len(SAMPLE.read_bytes()) < 10_000
