"""The stage DEMONSTRATIONS → NEUTRAL ANSWERS: what the model itself answers, greedily.

It takes longest of all stages, and depends on the model, the prompts and the number of tokens alone.

Shapes: B rows of a batch, T tokens of the prompts with padding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import GenerationConfig, PreTrainedModel

from alm_pipeline.editing.directions.capture import length_batches
from alm_pipeline.editing.directions.settings import ActivationConfig
from alm_pipeline.editing.directions.texts import TextEncoder
from alm_pipeline.models.loading import generating_as_asked
from alm_pipeline.models.output_head import input_device
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.runtime.progress import track
from storage.columns import join_rows
from storage.dataset import Dataset, Manifest
from storage.schemas import Kind

STAGE_VERSION = 1


def neutral_answers_dataset(demonstrations: Dataset, model: ModelReference, config: ActivationConfig) -> Dataset:
    """Return the dataset of the model's own answers, whether or not it is written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "demonstrations": demonstrations.name,
        "model": model.identity,
        "tokenizer": model.tokenizer.identity,
        "generation": model.generation_config_hash(),
        "config": config.model_dump(mode="json", include={"chat", "neutral_tokens", "dtype"}),
    }
    return Dataset(demonstrations.root, Kind.NEUTRAL_ANSWERS, f"{demonstrations.label}-{model.label}", identity)


def write_neutral_answers(
    answers: Dataset, demonstrations: Dataset, model: ModelReference, config: ActivationConfig
) -> Manifest:
    """Answer the prompts of every shard that is not written yet; an answer that a demonstration brings is taken."""
    if manifest := answers.manifest():
        return manifest
    records = demonstrations.complete_manifest().shards
    encoder = TextEncoder(model, config.chat)
    loaded: PreTrainedModel | None = None
    with answers.being_written(), track("answer", sum(record.rows for record in records), "prompts") as advance:
        for shard, record in enumerate(records):
            if not answers.record(shard):
                loaded = loaded or model.load(config.dtype, device=config.device)
                columns, counts = _answer_shard(demonstrations, shard, loaded, encoder, config)
                model.check_unchanged()
                answers.write_shard(shard, columns, counts)
            advance(record.rows)
        return answers.finish(len(records))


def _answer_shard(
    demonstrations: Dataset, shard: int, model: PreTrainedModel, encoder: TextEncoder, config: ActivationConfig
) -> tuple[dict[str, Any], dict[str, int]]:
    table = demonstrations.read_shard(shard, ["id", "prompt", "neutral"])
    rows = table.to_pylist()
    asked = [k for k, row in enumerate(rows) if row["neutral"] is None]
    prompts = [encoder.ids(row["prompt"]) for row in rows]
    ids = {k: encoder.ids(row["prompt"], row["neutral"]) for k, row in enumerate(rows) if row["neutral"] is not None}
    texts = {k: row["neutral"] for k, row in enumerate(rows)}
    generated = greedy_answers(model, [prompts[k] for k in asked], config.neutral_tokens, config.batch_tokens)
    for k, answer in zip(asked, generated, strict=True):
        ids[k], texts[k] = [*prompts[k], *answer], encoder.text(answer)
    columns = {
        "id": table["id"],
        "answer": pa.array([texts[k] for k in range(len(rows))], pa.string()),
        "token_ids": join_rows([np.array(ids[k], np.int32) for k in range(len(rows))], pa.int32()),
    }
    counts = {
        "answers": len(asked),
        "tokens": sum(map(len, generated)),
        "empty_answers": sum(not answer for answer in generated),
    }
    return columns, counts


@torch.inference_mode()
def greedy_answers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, batch_tokens: int
) -> list[list[int]]:
    """Return the ids of the model's greedy answer to each prompt, without the token that ends it."""
    own = model.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = [end for end in ends if end is not None]
    greedy = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        bos_token_id=own.bos_token_id,
    )
    answers: dict[int, list[int]] = {}
    for batch in length_batches(prompts, batch_tokens, new_tokens):
        answers |= zip(batch, _answer_batch(model, [prompts[k] for k in batch], greedy, set(ends)), strict=True)
    return [answers[k] for k in range(len(prompts))]


def _answer_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], greedy: GenerationConfig, ends: set[int]
) -> list[list[int]]:
    """Answer a batch. Prompts are padded on the left, so that all answers begin at one place."""
    width = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), width), greedy.pad_token_id, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for k, prompt in enumerate(prompts):
        ids_BT[k, width - len(prompt) :] = torch.tensor(prompt)
        mask_BT[k, width - len(prompt) :] = 1
    device = input_device(model)
    with generating_as_asked(model):
        generated = model.generate(  # type: ignore[operator]
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), generation_config=greedy
        )
    answers = [row[width:].tolist() for row in generated]
    return [answer[: next((k for k, id_ in enumerate(answer) if id_ in ends), None)] for answer in answers]
