"""Acceptance of drafts: of a model by itself it is 1; otherwise it is counted by a loop of its own."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from alm_pipeline.comparison.corpora import texts_at
from alm_pipeline.comparison.drafts import Proposals, compare_drafts, proposals
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.overrides import Overrides, configure
from storage.errors import UserError
from tests import tiny

VOCABULARY = 300
PROMPT = [5, 17, 200, 3, 41]


def greedy(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    """The oracle's step: no cache, and the whole text again for each token."""
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def speculated(target: PreTrainedModel, draft: PreTrainedModel, ahead: int, max_tokens: int) -> Proposals:
    """The oracle: speculative decoding as loops."""
    ids, end, total = list(PROMPT), len(PROMPT) + max_tokens, Proposals(0, 0, 0)
    while len(ids) < end:
        count = min(ahead, end - len(ids) - 1)
        proposed = greedy(draft, ids, count)[len(ids) :]
        own = greedy(target, ids, count + 1)[len(ids) :]
        accepted = next((k for k in range(count) if proposed[k] != own[k]), count)
        total = Proposals(total.proposed + count, total.accepted + accepted, total.passes + 1)
        ids += own[: accepted + 1]
    return total


def endless(model: PreTrainedModel) -> PreTrainedModel:
    """A model that no token ends."""
    model.generation_config.eos_token_id = None
    return model.eval()


def blended(target: PreTrainedModel, share: float) -> PreTrainedModel:
    """A model between the target and another one: it agrees in part."""
    draft = tiny.tiny_llama(VOCABULARY)
    generator = torch.Generator().manual_seed(3)
    for weight, other in zip(draft.parameters(), target.parameters(), strict=True):
        noise = torch.randn(weight.shape, generator=generator) * other.std()
        weight.data = torch.lerp(other.data, noise, share)
    return endless(draft)


@pytest.mark.parametrize("ahead", [1, 3, 5])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5])
def test_proposals_are_counted_as_by_loops(ahead: int, share: float) -> None:
    target = endless(tiny.tiny_llama(VOCABULARY))
    draft = blended(target, share)
    found = proposals(target, draft, PROMPT, ahead=ahead, max_tokens=20)
    assert found == speculated(target, draft, ahead, 20)
    assert (found.accepted == found.proposed) == (share == 0.0)


def test_the_round_in_which_a_text_ends_does_not_count() -> None:
    target = endless(tiny.tiny_llama(VOCABULARY))
    draft = blended(target, 0.0)
    written = greedy(target, PROMPT, 7)[len(PROMPT) :]
    target.generation_config.eos_token_id = written[-1]
    # two rounds of 3 + 1, of which the second one ends the text, or an earlier one
    rounds = written.index(written[-1]) // 4
    assert proposals(target, draft, PROMPT, ahead=3, max_tokens=20) == (3 * rounds, 3 * rounds, rounds)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    file = tmp_path / "texts.jsonl"
    rows = [{"text": text} for text in (*tiny.TEXTS, "x", "The lazy dog.")]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def test_a_models_acceptance_by_itself_is_1(texts: str, llama_folder: str, tmp_path: Path) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    other = tiny.save(tmp_path / "other", tiny.tiny_qwen(len(tokenizer)), tokenizer)
    tiny.save(tmp_path / "same", tiny.tiny_llama(len(tokenizer)), tokenizer)
    target = str(tmp_path / "same")
    (itself, draft), left_out = compare_drafts(target, [target, other], texts_at(texts, "text", 9), max_tokens=12)
    assert itself.rate.value.value == 1
    assert itself.proposals.accepted == itself.proposals.proposed > 0
    assert 1 <= draft.tokens_per_pass < itself.tokens_per_pass <= 6
    assert draft.rate.difference is not None
    assert draft.rate.difference.value == draft.rate.value.value - 1 < 0
    assert left_out == {"too_short": 1}


def test_a_draft_with_another_tokenizer_is_refused(texts: str, llama_folder: str, gemma_folder: str) -> None:
    with pytest.raises(UserError, match=r"has another tokenizer than .* `alm run draft --teacher"):
        compare_drafts(llama_folder, [gemma_folder], texts_at(texts, "text", 9))


def test_the_recipe_makes_a_draft(texts: str, llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    """A model of another family, which then has the target's ids and can propose them."""
    small = {"train.batch_tokens": 512, "train.row_tokens": 256, "train.dtype": "float32", "score.dtype": "float32"}
    (tmp_path / "many.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{k}. {tiny.TEXTS[k % 4]}"}) for k in range(40))
    )
    given = {"corpus": str(tmp_path / "many.jsonl"), "teacher": gemma_folder, "student": llama_folder, "steps": 2}
    config = configure("draft", Overrides.model_validate({**given, "settings": {**small, "corpus.held_out": 0.2}}))
    trained = Pipeline(config, str(tmp_path / "store"))
    trained.run()
    corpus = texts_at(texts, "text", 9)
    (draft,), _ = compare_drafts(gemma_folder, [trained.student.url], corpus, max_tokens=8, ahead=2)
    assert draft.proposals.proposed > 0
    assert 0 <= draft.rate.value.value < 1
    with pytest.raises(UserError, match="has another tokenizer"):
        compare_drafts(gemma_folder, [llama_folder], corpus)
