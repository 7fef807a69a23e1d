"""The stage TOKENS → TEACHER SCORES: two numbers a token, whatever the vocabulary's size.

Examples are batched longest first and padded on the right, where causal attention never looks: no mask is
needed, and no example sees another.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models import embedding_rows, load_model, load_tokenizer, matmul_precision, model_identity
from alm_pipeline.progress import Advance, track
from alm_pipeline.scoring.head import hidden_states, output_head, token_and_boundary_logprobs
from alm_pipeline.tokenization.byte_view import byte_view
from alm_pipeline.tokenization.encoding import check_vocabulary
from storage.columns import join_rows, list_rows
from storage.dataset import Dataset, Manifest
from storage.schemas import Kind

STAGE_VERSION = 2
BATCH_TOKENS = 4096
Floats = npt.NDArray[np.float32]
Scores = tuple[Floats, Floats]


def scores_dataset(tokens: Dataset, teacher: str, config: ScoreConfig) -> Dataset:
    """The teacher's scores of these tokens, whether or not they are written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "tokens": tokens.name,
        "teacher": model_identity(teacher),
        "config": config.model_dump(mode="json"),
    }
    return Dataset(tokens.root, Kind.TEACHER_SCORES, tokens.label, identity)


def score(
    tokens: Dataset, scores: Dataset, teacher: str, config: ScoreConfig, *, trust_remote_code: bool = False
) -> Manifest:
    """Score every shard that is not scored yet."""
    if manifest := scores.manifest():
        return manifest
    source = tokens.complete_manifest()
    scorer = Scorer.load(teacher, config.dtype, trust_remote_code=trust_remote_code)
    with track(f"score {tokens.label}", source.counts["tokens"], "tokens") as advance:
        for shard, record in enumerate(source.shards):
            if scores.record(shard):
                advance(record.counts["tokens"])
            else:
                _score_shard(tokens, scores, shard, scorer, config.mantissa_bits, advance)
    return scores.finish(len(source.shards))


def _score_shard(
    tokens: Dataset, scores: Dataset, shard: int, scorer: "Scorer", mantissa_bits: int, advance: Advance
) -> None:
    table = tokens.read_shard(shard, ["id", "token_ids"])
    examples = list_rows(table["token_ids"])
    rows = scorer.score(examples, advance)
    rounded = [[round_mantissa(values, mantissa_bits) for values in row] for row in rows]
    columns: dict[str, Any] = {
        "id": table["id"],
        "logprobs": join_rows([row[0] for row in rounded], pa.float32()),
        "boundary_logprobs": join_rows([row[1] for row in rounded], pa.float32()),
    }
    scores.write_shard(shard, columns, counts={"tokens": sum(map(len, examples))})


def round_mantissa(values: Floats, bits: int) -> Floats:
    """Rounded to the nearest float32 of so many mantissa bits: a relative error of at most 2^-(bits + 1).

    A teacher that computes in bfloat16 is itself off by 2^-9; zeros at the end cost next to nothing compressed.
    """
    dropped = 23 - bits
    if not dropped:
        return values
    as_integers = values.view(np.uint32)
    # the carry out of a mantissa of ones goes into the exponent, which is what rounding up means
    rounded = (as_integers + np.uint32(1 << (dropped - 1))) & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


class Scorer:
    """A model that gives every token its log-probability, and the one of a boundary token after it."""

    def __init__(self, model: PreTrainedModel, boundary: npt.NDArray[np.bool_]) -> None:
        self.model = model
        # the head's sums in float32: rounded to bfloat16, logits of 20 are off by 0.06
        self.head = output_head(model, torch.float32 if model.device.type == "cpu" else None)
        self.boundary_ids_K = torch.from_numpy(np.flatnonzero(boundary)).to(model.device)

    @classmethod
    def load(cls, name: str, dtype: str, *, trust_remote_code: bool = False) -> "Scorer":
        model = load_model(name, dtype, trust_remote_code=trust_remote_code)
        return cls.of(model, name)

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: str) -> "Scorer":
        """Raises UserError when the tokenizer is not the model's."""
        view, rows = byte_view(load_tokenizer(tokenizer).backend_tokenizer), embedding_rows(model)
        check_vocabulary(view, rows, tokenizer)
        return cls(model, view.boundary(rows))

    @torch.inference_mode()
    def score(self, examples: Sequence[npt.NDArray[np.int32]], advance: Advance | None = None) -> list[Scores]:
        """For each example of T ids: [T] log-probabilities (NaN for the first), [T] boundary log-probabilities."""
        empty = np.zeros(0, np.float32)
        scores: list[Scores] = [(empty, empty)] * len(examples)
        for batch in _batches([len(example) for example in examples]):
            for index, row in zip(batch, self._score_batch([examples[index] for index in batch]), strict=True):
                scores[index] = row
            if advance:
                advance(sum(len(examples[index]) for index in batch))
        return scores

    def _score_batch(self, examples: Sequence[npt.NDArray[np.int32]]) -> Iterator[Scores]:
        ids_BT = torch.zeros(len(examples), max(map(len, examples)), dtype=torch.int64)
        for row, example in enumerate(examples):
            ids_BT[row, : len(example)] = torch.from_numpy(example.copy())
        token_BT, boundary_BT = self._logprobs(ids_BT.to(self.model.device))
        for row, example in enumerate(examples):
            first = np.full(1, np.nan, dtype=np.float32)
            yield np.concatenate([first, token_BT[row, : len(example) - 1]]), boundary_BT[row, : len(example)]

    def _logprobs(self, ids_BT: Tensor) -> tuple[Floats, Floats]:
        """([B, T], [B, T]): at position i the log-probability of token i + 1, and of a boundary token after token i."""
        positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        hidden_BTH = hidden_states(self.model, ids_BT, positions_BT)
        next_BT = torch.nn.functional.pad(ids_BT[:, 1:], (0, 1))
        with matmul_precision("medium" if self.model.dtype == torch.bfloat16 else "highest"):
            token_N, boundary_N = token_and_boundary_logprobs(
                hidden_BTH.flatten(0, 1), next_BT.flatten(), self.head, self.boundary_ids_K
            )
        return token_N.view_as(ids_BT).cpu().numpy(), boundary_N.view_as(ids_BT).cpu().numpy()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of the non-empty examples, longest first, in batches of at most BATCH_TOKENS with padding."""
    batch: list[int] = []
    for index in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
