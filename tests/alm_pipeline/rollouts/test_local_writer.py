"""What a model in this process writes, against a loop that feeds it one token after the other without a cache."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from alm_pipeline.config import PromptsConfig, SamplingConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.rollouts.local_writer import LocalWriter
from alm_pipeline.rollouts.prompts import PromptChoice
from alm_pipeline.rollouts.sampling import uniforms
from alm_pipeline.rollouts.stage import rollouts_dataset, write_rollouts
from storage.dataset import Dataset, Manifest
from tests.alm_pipeline.rollouts.conftest import WritingPair

PROMPTS = PromptsConfig(text_bytes=12, per_shard=16)
MOST = {"texts": 8, "talks": 4}
"""so few tokens that some texts are cut"""
CHOICE = PromptChoice(train=40, held_out=8, seed=0, round=1)


def write(
    examples: Dataset, model: str, sampling: SamplingConfig, choice: PromptChoice = CHOICE
) -> tuple[list[dict[str, Any]], Manifest, Dataset]:
    writer = LocalWriter(ModelReference(model), sampling)
    rollouts = rollouts_dataset(examples, writer, PROMPTS, sampling, choice)
    manifest = write_rollouts(rollouts, examples, writer, PROMPTS, choice)
    rows = [row for shard in range(len(manifest.shards)) for row in rollouts.read_shard(shard).to_pylist()]
    return rows, manifest, rollouts


def continued(model: str, prompt: Sequence[int], numbers: np.ndarray, ends: Sequence[int], temperature: float) -> Any:
    """The tokens after a prompt, by the whole sequence's logits at each step."""
    network = ModelReference(model).load("float32")
    ids = list(prompt)
    for number in numbers:
        with torch.no_grad():
            logits = network(torch.tensor([ids])).logits[0, -1].double().numpy()
        scaled = np.exp((logits - logits.max()) / temperature)
        ids.append(int(np.searchsorted(np.cumsum(scaled / scaled.sum()), number, side="right")))
        if ids[-1] in ends:
            break
    return ids


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("kind", ["texts", "talks"])
def test_texts_are_those_of_a_loop(request: pytest.FixtureRequest, pair: WritingPair, side: str, kind: str) -> None:
    examples, model = request.getfixturevalue(kind), getattr(pair, side)
    most = MOST[kind]
    sampling = SamplingConfig(max_tokens=most, temperature=0.8, seed=5, at_once=7)
    rows, manifest, _ = write(examples, model, sampling)
    tokenizer = ModelReference(model).tokenizer.fast
    ends = [tokenizer.eos_token_id, *([tokenizer.convert_tokens_to_ids("<end_of_turn>")] if side == "teacher" else [])]
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    for row in rows[::9]:
        if kind == "texts":
            text = row["text"].encode()[: row["completion_at"]].decode()
            prompt = tokenizer.encode(text)
        else:
            messages = json.loads(row["messages"])[: row["completion_at"]]
            prompt = tokenizer.encode(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
                add_special_tokens=False,
            )
        numbers = uniforms(5, 0 if row["split"] == "held_out" else 1, row["id"], most)
        expected = continued(model, prompt, numbers, ends, 0.8)
        # a text that was cut within a character is cut before it
        assert row["written_ids"] == expected[: len(row["written_ids"])]
        assert len(expected) - len(row["written_ids"]) <= (0 if row["finish_reason"] == "stop" else 3)
        written = expected[len(prompt) : len(row["written_ids"]) - (row["finish_reason"] == "stop")]
        assert row["text"].encode().endswith(tokenizer.decode(written).encode())
    assert manifest.rows + sum(manifest.dropped.values()) == 48


@pytest.mark.parametrize("kind", ["texts", "talks"])
def test_the_batch_decides_nothing(request: pytest.FixtureRequest, pair: WritingPair, kind: str) -> None:
    """In float64 rounding can't choose another token; in float32 it may, once in thousands of texts."""
    examples = request.getfixturevalue(kind)
    first, _, dataset = write(examples, pair.student, SamplingConfig(max_tokens=12, at_once=1))
    assert (dataset.url, first) == (dataset.url, write(examples, pair.student, SamplingConfig(max_tokens=12))[0])
    for size in (3, 64):
        writer = LocalWriter(ModelReference(pair.student), SamplingConfig(max_tokens=12, at_once=size))
        again = rollouts_dataset(examples, writer, PROMPTS, writer.sampling, CHOICE)
        assert again.name == dataset.name
        elsewhere = Dataset(f"{dataset.root}/{size}", again.kind, again.label, again.identity)
        write_rollouts(elsewhere, examples, writer, PROMPTS, CHOICE)
        for shard in range(3):
            assert elsewhere.read_shard(shard).equals(dataset.read_shard(shard))


def test_prompts_differ_by_round_and_held_out_ones_do_not(pair: WritingPair, texts: Dataset) -> None:
    sampling = SamplingConfig(max_tokens=12)
    first, _, dataset = write(texts, pair.student, sampling)
    second, _, other = write(texts, pair.student, sampling, CHOICE._replace(round=2))
    assert dataset.name != other.name
    of = {
        split: [[row["id"] for row in rows if row["split"] == split] for rows in (first, second)]
        for split in ("train", "held_out")
    }
    assert of["train"][0] != of["train"][1]
    held_out = [[row for row in rows if row["split"] == "held_out"] for rows in (first, second)]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 8


def test_every_setting_that_decides_a_text_is_in_the_name(pair: WritingPair, texts: Dataset) -> None:
    def name(sampling: SamplingConfig, prompts: PromptsConfig = PROMPTS, model: str = pair.student) -> str:
        writer = LocalWriter(ModelReference(model), sampling)
        return rollouts_dataset(texts, writer, prompts, sampling, CHOICE).name

    base = SamplingConfig()
    changed = [
        {"max_tokens": 9},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"top_k": 5},
        {"seed": 1},
        {"dtype": "bfloat16"},
    ]
    names = [name(base), *(name(base.model_copy(update=update)) for update in changed)]
    names += [name(base, PROMPTS.model_copy(update={"text_bytes": 20})), name(base, model=pair.teacher)]
    assert len(set(names)) == len(names)
    assert name(base.model_copy(update={"at_once": 3})) == names[0]
