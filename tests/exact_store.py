"""A store whose teacher is exact: the pipeline's own stages, but the scores are those of a `TokenModel`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from alm_pipeline.config import AlmConfig, CorpusConfig, EvaluationConfig, FilesSource, ObjectiveConfig, StudentConfig
from alm_pipeline.objective.batch_loss import LossCounts, ScoredBatch
from alm_pipeline.pipeline import Pipeline
from storage.columns import list_array, list_rows
from tests import tiny
from tests.exact_words import TokenModel

IMPOSSIBLE = -30.0
"""of a boundary that can't come, in nats: stored scores are finite"""


def exact_pipeline(root: Path, teacher: TokenModel, student: TokenModel, texts: Sequence[Sequence[int]]) -> Pipeline:
    """Return a pipeline whose caches are complete: the texts, given as indices of words, with the teacher's scores."""
    lines = [json.dumps({"id": f"{number}", "text": teacher.words.text(words)}) for number, words in enumerate(texts)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    folders = [_model_folder(root / name, model) for name, model in (("teacher", teacher), ("student", student))]
    longest = max(len(teacher.words.text(words).encode()) for words in texts)
    corpus = CorpusConfig(
        name="words",
        source=FilesSource(urls=(str(root / "texts.jsonl"),)),
        max_bytes=max(longest, 16),
        normalize=(),
        held_out=0.0,
    )
    evaluation = EvaluationConfig(samples=0)
    config = AlmConfig(
        corpus=corpus, teacher=folders[0], student=StudentConfig(model=folders[1]), evaluation=evaluation
    )
    pipeline = Pipeline(config, str(root / "store"))
    pipeline.shard()
    pipeline.tokenize("teacher")
    pipeline.tokenize("student")
    pipeline.align()
    _write_scores(pipeline, teacher)
    return pipeline


def _model_folder(folder: Path, model: TokenModel) -> str:
    """Save the tokenizer beside a model that is never asked."""
    weights = tiny.tiny_llama(len(model.tokenizer))
    weights.config.max_position_embeddings = 1 << 20
    return tiny.save(folder, weights, model.tokenizer)


def _write_scores(pipeline: Pipeline, teacher: TokenModel) -> None:
    tokens, scores = pipeline.tokens("teacher"), pipeline.scores
    shards = len(tokens.complete_manifest().shards)
    for shard in range(shards):
        table = tokens.read_shard(shard, ["id", "token_ids"])
        rows = [teacher.numbers(ids.tolist()) for ids in list_rows(table["token_ids"])]
        offsets = np.cumsum([0, *(len(row.ids) for row in rows)])
        columns = {"id": table["id"]}
        for name in ("logprobs", "boundary_logprobs"):
            values = np.concatenate([getattr(row, name) for row in rows]).clip(min=IMPOSSIBLE).astype(np.float32)
            if name == "logprobs":
                values[offsets[:-1]] = np.nan  # the first token of an example has no prediction
            columns[name] = list_array(values, offsets, pa.float32())
        scores.write_shard(shard, columns, counts={"tokens": int(offsets[-1])})
    scores.finish(shards)


def scored_batch(
    batch: Mapping[str, Tensor], student: TokenModel, objective: ObjectiveConfig, dtype: torch.dtype = torch.float32
) -> ScoredBatch:
    """Return a batch of `BatchStream` with an exact student's numbers."""
    logprobs_N, boundary_N = torch.zeros(2, batch["token_ids_BS"].numel(), dtype=dtype)
    for at, ids in examples_of_batch(batch):
        numbers, places = student.numbers(ids), slice(at, at + len(ids))
        logprobs_N[places] = torch.from_numpy(numbers.logprobs).to(dtype)
        boundary_N[places] = torch.from_numpy(numbers.boundary_logprobs.clip(min=IMPOSSIBLE)).to(dtype)
    return ScoredBatch.of(logprobs_N.roll(-1), boundary_N, batch, objective, LossCounts.of(batch))


def examples_of_batch(batch: Mapping[str, Tensor]) -> Iterator[tuple[int, list[int]]]:
    """Yield where each example of a packed batch begins (of N), and its tokens.

    An example's first token has position 0 and is not predicted, all its others are; padding is neither.
    """
    ids, positions = (batch[name].flatten().tolist() for name in ("token_ids_BS", "position_ids_BS"))
    predicted = [*batch["predicted_N"].tolist(), False]
    for start in range(len(ids)):
        if positions[start] == 0 and predicted[start + 1] and positions[start + 1 : start + 2] == [1]:
            end = next(k for k in range(start + 1, len(predicted)) if not predicted[k])
            yield start, ids[start:end]
