"""Ensembles compared with their members, with a dense oracle in float64, and in transformers' own `generate`."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.ensemble.config import Mean, SharedTokens
from alm_pipeline.ensemble.generation import _inputs
from alm_pipeline.ensemble.loading import LoadedMember, ensemble_of
from alm_pipeline.ensemble.model import EnsembleModel
from alm_pipeline.ensemble.retokenization import Retokenizer
from alm_pipeline.ensemble.vocabulary import counterparts
from storage.errors import UserError
from tests import tiny

MEANS: tuple[Mean, ...] = ("probabilities", "logprobs")
TEXTS = ["The quick brown", "def add(left, right): 東京", "Natalia sold 48"]


@pytest.fixture(scope="module")
def llama(byte_level: PreTrainedTokenizerFast) -> LoadedMember:
    return _part(tiny.tiny_llama(len(byte_level)), byte_level)


@pytest.fixture(scope="module")
def other_llama(byte_level: PreTrainedTokenizerFast) -> LoadedMember:
    return _part(tiny.tiny_qwen(len(byte_level) + 7), byte_level)  # with rows of padding


@pytest.fixture(scope="module")
def gemma(sentencepiece: PreTrainedTokenizerFast) -> LoadedMember:
    return _part(tiny.tiny_gemma(len(sentencepiece)), sentencepiece)


def _part(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> LoadedMember:
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LoadedMember(model.eval(), tokenizer)


def weighted(part: LoadedMember, weight: float) -> LoadedMember:
    return LoadedMember(part.model, part.tokenizer, weight)


def logprobs(part: LoadedMember, ids: Sequence[int]) -> Tensor:
    """[T, V] the log-probabilities of the model alone, in float64."""
    with torch.no_grad():
        return part.model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("weights", [(1, 1), (3, 0.5), (0, 2)])
@pytest.mark.parametrize("vocabulary", ["shared", "mined"])
def test_a_model_with_itself_is_the_model(
    llama: LoadedMember, mean: Mean, weights: tuple[float, float], vocabulary: SharedTokens
) -> None:
    ensemble = ensemble_of([weighted(llama, weight) for weight in weights], mean, vocabulary)
    inputs = ensemble.encode(TEXTS)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = llama.model(**inputs, position_ids=positions).logits.log_softmax(-1)
    shown = inputs["attention_mask"].bool()
    torch.testing.assert_close(ensemble(**inputs).logits[shown], alone[shown], atol=2e-6, rtol=1e-5)
    for settings in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}, {"do_sample": True, "top_k": 0}):
        torch.manual_seed(3)
        expected = llama.model.generate(**inputs, **settings, max_new_tokens=12)
        torch.manual_seed(3)
        assert torch.equal(ensemble.generate(**inputs, **settings, max_new_tokens=12), expected)


@pytest.mark.parametrize("mean", MEANS)
def test_a_weight_of_zero_leaves_a_member_out(llama: LoadedMember, gemma: LoadedMember, mean: Mean) -> None:
    ensemble = ensemble_of([weighted(llama, 1), weighted(gemma, 0)], mean)
    ids = llama.tokenizer(TEXTS[0])["input_ids"]
    found = ensemble(torch.tensor([ids])).logits[0].double()
    torch.testing.assert_close(found, logprobs(llama, ids), atol=2e-6, rtol=1e-5)


def combined(parts: Sequence[Tensor], weights: Sequence[float], mean: Mean) -> Tensor:
    """The dense definition."""
    shares = [weight / sum(weights) for weight in weights]
    if mean == "probabilities":
        return sum(share * part.exp() for share, part in zip(shares, parts, strict=True)).log()  # type: ignore[union-attr]
    mixed = sum(share * part for share, part in zip(shares, parts, strict=True))
    return torch.log_softmax(mixed, -1)  # type: ignore[arg-type]


@pytest.mark.parametrize("mean", MEANS)
def test_two_models_of_a_tokenizer_are_their_mean(llama: LoadedMember, other_llama: LoadedMember, mean: Mean) -> None:
    ensemble = ensemble_of([weighted(llama, 1), weighted(other_llama, 3)], mean)
    ids = llama.tokenizer(TEXTS[1])["input_ids"]
    with torch.no_grad():
        raw = other_llama.model(torch.tensor([ids])).logits[0].double()
    # rows without a token are not part of the other's distribution
    second = raw[:, : len(llama.tokenizer)].log_softmax(-1)
    found = ensemble(torch.tensor([ids])).logits[0].double()
    assert found.shape[-1] == len(llama.tokenizer)
    torch.testing.assert_close(found, combined([logprobs(llama, ids), second], [1, 3], mean), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("turned", [False, True])
def test_vocabularies_that_agree_in_part_are_masked_before_the_softmax(
    llama: LoadedMember, gemma: LoadedMember, mean: Mean, turned: bool
) -> None:
    lead, member = (gemma, llama) if turned else (llama, gemma)
    ensemble = ensemble_of([weighted(lead, 1), weighted(member, 2)], mean)
    pairs = counterparts(lead.tokenizer, member.tokenizer)
    ids = ensemble.ids(TEXTS[1])
    own = [int(pairs[id_]) for id_ in ids]
    # Gemma's tokenizer puts <bos> before texts, and the member reads it whichever model leads
    front = [] if turned else [member.tokenizer.bos_token_id]
    shared = torch.tensor([id_ for id_ in range(len(pairs)) if pairs[id_] >= 0])
    with torch.no_grad():
        ours = lead.model(torch.tensor([ids])).logits[0].double()[:, shared].log_softmax(-1)
        theirs = member.model(torch.tensor([front + own])).logits[0, len(front) :].double()
    theirs = theirs[:, torch.from_numpy(pairs)[shared]].log_softmax(-1)
    found = ensemble(torch.tensor([ids])).logits[0].double()
    torch.testing.assert_close(found[:, shared], combined([ours, theirs], [1, 2], mean), atol=2e-6, rtol=1e-5)
    assert found.exp().sum(-1).allclose(torch.ones(()).double(), atol=1e-5)
    others = torch.ones(found.shape[-1], dtype=torch.bool).index_fill(0, shared, False)
    assert bool((found[:, others] == -torch.inf).all())


def test_a_mined_member_reads_the_text_in_its_own_tokens(llama: LoadedMember, gemma: LoadedMember) -> None:
    ensemble = ensemble_of([weighted(llama, 0), weighted(gemma, 1)], vocabulary="mined")
    ids = llama.tokenizer("The quick brown fox")["input_ids"]
    found = ensemble(torch.tensor([ids])).logits[0].double()
    for end in range(1, len(ids) + 1):
        text = llama.tokenizer.decode(ids[:end])
        own = logprobs(gemma, gemma.tokenizer(text)["input_ids"])[-1]
        columns = ensemble.members[0].columns_L
        torch.testing.assert_close(
            found[end - 1, ensemble.shared_L], own[columns].log_softmax(-1), atol=2e-6, rtol=1e-5
        )


def test_truncation_and_padding_that_are_saved_with_a_tokenizer_change_no_ids(
    llama: LoadedMember, gemma: LoadedMember
) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    cutting = [copy.deepcopy(part.tokenizer) for part in (llama, gemma)]
    for tokenizer in cutting:
        tokenizer.backend_tokenizer.enable_truncation(2)
        tokenizer.backend_tokenizer.enable_padding(length=64)
    ids = llama.tokenizer(text)["input_ids"]
    assert Retokenizer(*cutting)(ids) == Retokenizer(llama.tokenizer, gemma.tokenizer)(ids)
    parts = [replace(part, tokenizer=tokenizer) for part, tokenizer in zip((llama, gemma), cutting, strict=True)]
    assert ensemble_of(parts).ids(text) == ensemble_of([llama, gemma]).ids(text)
    assert _inputs(llama.model, cutting[0], "llama", text, special=True)["input_ids"][0].tolist() == ids


def several(llama: LoadedMember, other_llama: LoadedMember, gemma: LoadedMember) -> list[EnsembleModel]:
    return [
        ensemble_of([llama, weighted(other_llama, 2)]),
        ensemble_of([llama, gemma], "logprobs"),
        ensemble_of([gemma, llama]),
        ensemble_of([llama, gemma], vocabulary="mined"),
        ensemble_of([gemma, llama], "logprobs", "mined"),
    ]


@pytest.mark.parametrize("beams", [1, 3])
def test_generating_with_a_cache_is_generating_without(
    llama: LoadedMember, other_llama: LoadedMember, gemma: LoadedMember, beams: int
) -> None:
    for ensemble in several(llama, other_llama, gemma):
        inputs = ensemble.encode(TEXTS)
        settings = {"do_sample": False, "num_beams": beams, "max_new_tokens": 14}
        cached = ensemble.generate(**inputs, **settings)
        assert torch.equal(cached, ensemble.generate(**inputs, **settings, use_cache=False))
        assert len({tuple(row) for row in cached.tolist()}) == len(TEXTS)


def test_a_cache_spares_the_tokens_that_were_seen(llama: LoadedMember, gemma: LoadedMember) -> None:
    ensemble = ensemble_of([llama, gemma])
    inputs, widths = ensemble.encode(TEXTS), list[int]()
    handles = [
        part.model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: widths.append(ids[0].shape[1]))
        for part in (llama, gemma)
    ]
    ensemble.generate(**inputs, do_sample=False, max_new_tokens=4, eos_token_id=-1)
    for handle in handles:
        handle.remove()
    width = inputs["input_ids"].shape[1]
    assert widths == [width, width + 1] + [1, 1] * 3  # Gemma's <bos> in front


def test_a_batch_gives_what_its_texts_give_alone(
    llama: LoadedMember, other_llama: LoadedMember, gemma: LoadedMember
) -> None:
    for ensemble in several(llama, other_llama, gemma):
        batch = ensemble.encode(TEXTS)
        width = batch["input_ids"].shape[1]
        settings = {"do_sample": False, "max_new_tokens": 14}
        together = ensemble.generate(**batch, **settings)
        for row, text in enumerate(TEXTS):
            single = ensemble.encode([text])
            alone = ensemble.generate(**single, **settings)[0, single["input_ids"].shape[1] :]
            assert together[row, width : width + len(alone)].tolist() == alone.tolist()


def test_beams_are_those_of_a_plain_search(llama: LoadedMember, gemma: LoadedMember) -> None:
    ensemble = ensemble_of([llama, gemma])
    ensemble.generation_config.eos_token_id = None
    inputs = ensemble.encode([TEXTS[0]])
    found = ensemble.generate(**inputs, num_beams=4, do_sample=False, max_new_tokens=5)[0].tolist()
    beams = [(0.0, inputs["input_ids"][0].tolist())]
    for _ in range(5):
        grown = []
        for score, ids in beams:
            row = ensemble(torch.tensor([ids])).logits[0, -1]
            grown += [(score + float(row[id_]), [*ids, id_]) for id_ in row.topk(8).indices.tolist()]
        beams = sorted(grown, reverse=True)[:4]
    assert found == beams[0][1]


def test_a_cache_is_cropped_and_reordered(llama: LoadedMember, other_llama: LoadedMember, gemma: LoadedMember) -> None:
    for ensemble in several(llama, other_llama, gemma):
        inputs = ensemble.encode(["The quick", "def add"])
        cache = ensemble(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        length = cache.get_seq_length()
        mask = inputs["attention_mask"]
        first, second = (ensemble.shared_L[[at, at]][:, None] for at in (20, 30))
        grown = torch.nn.functional.pad(mask, (0, 1), value=1)
        ensemble(first, grown, cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)
        assert cache.get_seq_length() == length
        cache.reorder_cache(torch.tensor([1, 1]))
        found = ensemble(second, grown[[1, 1]], cache, use_cache=True, logits_to_keep=1).logits
        whole = torch.cat([inputs["input_ids"][[1, 1]], second], -1)
        torch.testing.assert_close(found, ensemble(whole, grown[[1, 1]], logits_to_keep=1).logits)


def test_sampling_has_the_ensembles_distribution(llama: LoadedMember, gemma: LoadedMember) -> None:
    ensemble = ensemble_of([llama, gemma])
    inputs = ensemble.encode(["The quick"])
    expected = ensemble(**inputs, logits_to_keep=1).logits[0, -1].double().exp()
    torch.manual_seed(0)
    drawn = ensemble.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=1, num_return_sequences=20_000)[:, -1]
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    often = expected * 20_000 > 20
    spread = ((counts - expected * 20_000) ** 2 / (expected * 20_000))[often]
    assert often.sum() > 10
    assert spread.mean() < 1.7  # χ² over its degrees of freedom


def test_precisions_meet_in_float32(llama: LoadedMember, other_llama: LoadedMember) -> None:
    half = LoadedMember(tiny.tiny_qwen(len(llama.tokenizer) + 7).to(torch.bfloat16), llama.tokenizer)
    ensemble = ensemble_of([llama, half])
    inputs = ensemble.encode(TEXTS)
    found = ensemble(**inputs).logits
    assert found.dtype == torch.float32
    exact = ensemble_of([llama, other_llama])(**inputs).logits
    shown = inputs["attention_mask"].bool()
    assert 0 < float((found - exact)[shown].exp().sub(1).abs().max()) < 0.3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("vocabulary", ["shared", "mined"])
def test_members_may_be_on_different_devices(
    llama: LoadedMember, gemma: LoadedMember, vocabulary: SharedTokens
) -> None:
    on_gpu = LoadedMember(tiny.tiny_gemma(len(gemma.tokenizer)).to("cuda"), gemma.tokenizer)  # type: ignore[arg-type]
    for here, there in (([llama, gemma], [llama, on_gpu]), ([gemma, llama], [on_gpu, llama])):
        near, far = ensemble_of(here, vocabulary=vocabulary), ensemble_of(there, vocabulary=vocabulary)
        inputs = near.encode(TEXTS)
        torch.testing.assert_close(far(**far.encode(TEXTS)).logits.cpu(), near(**inputs).logits, atol=1e-4, rtol=1e-4)
        settings = {"do_sample": False, "num_beams": 2, "max_new_tokens": 8}
        assert torch.equal(far.generate(**far.encode(TEXTS), **settings).cpu(), near.generate(**inputs, **settings))


def test_what_a_member_cannot_read_is_refused(llama: LoadedMember, gemma: LoadedMember) -> None:
    ensemble = ensemble_of([gemma, llama])
    pairs = counterparts(gemma.tokenizer, llama.tokenizer)
    missing = next(id_ for id_ in range(300, len(pairs)) if pairs[id_] < 0)
    with pytest.raises(UserError, match=f"token {missing}, .* the ensemble's `encode`"):
        ensemble(torch.tensor([[missing]]))
    with pytest.raises(UserError, match=r"'<start_of_turn>' does not have a counterpart .*vocabulary: mined"):
        ensemble.encode(["<start_of_turn>user"])
    mined = ensemble_of([gemma, llama], vocabulary="mined")
    assert mined.encode(["<start_of_turn>user"])["input_ids"][0, 1] == 4


def test_padding_before_a_text_changes_nothing_whatever_its_id(llama: LoadedMember, gemma: LoadedMember) -> None:
    ensemble = ensemble_of([llama, gemma])
    inputs = ensemble.encode(TEXTS)
    expected = ensemble(**inputs).logits
    shown = inputs["attention_mask"].bool()
    for filler in (0, 5):
        ids = inputs["input_ids"].where(shown, filler)
        torch.testing.assert_close(ensemble(ids, inputs["attention_mask"]).logits[shown], expected[shown])
