"""Losses and gradients against float64, and the speed of a step; batches are read from datasets of random tokens."""

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.objective.alm import ChunkPlaces, chunk_logprobs
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.scoring.head import token_and_boundary_logprobs
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.model.execution import replaced_forward
from alm_pipeline.training.model.live_teacher import LiveTeacher
from alm_pipeline.training.model.terms import micro_batch_losses
from benchmarks.device import SMALL
from benchmarks.device.measuring import SIZES, Line, Lines, device, peak_bytes, peak_flops, seconds, synchronize
from benchmarks.device.models import forward_flops, llama, placed, vocabulary_of
from storage.columns import list_array
from storage.dataset import Dataset
from storage.schemas import Kind


def caches(root: Path, shards: int, texts_per_shard: int) -> dict[str, Dataset]:
    """Datasets of random tokens: both sides of an example have as many chunks, of 1 to 3 tokens each."""
    made = {
        "examples": Dataset(str(root), Kind.EXAMPLES, "random", {"benchmark": "device"}),
        "teacher_tokens": Dataset(str(root), Kind.TOKENS, "random-teacher", {"benchmark": "device"}),
        "student_tokens": Dataset(str(root), Kind.TOKENS, "random-student", {"benchmark": "device"}),
        "alignments": Dataset(str(root), Kind.ALIGNMENTS, "random", {"benchmark": "device"}),
        "scores": Dataset(str(root), Kind.TEACHER_SCORES, "random", {"benchmark": "device"}),
    }
    for shard in range(shards):
        for name, columns in random_shard(shard, texts_per_shard).items():
            counts = {"tokens": columns.pop("tokens")} if "tokens" in columns else {}
            made[name].write_shard(shard, columns, counts)
    for dataset in made.values():
        dataset.finish(shards)
    return made


def random_shard(shard: int, texts: int) -> dict[str, dict[str, Any]]:
    generator = np.random.default_rng(shard)
    fewest, most = np.log([4, SIZES.lengths[1] / 3]).tolist()
    chunks = np.exp(generator.uniform(fewest, most, texts)).astype(int)
    offsets = np.concatenate([[0], np.cumsum(chunks)])
    total = int(offsets[-1])
    ids = pa.array([f"{shard}-{row}" for row in range(texts)], pa.string())
    texts_column = pa.array(["x"] * texts, pa.string())
    counts = {side: generator.integers(1, 4, total).astype(np.int32) for side in ("teacher", "student")}
    lengths = np.full(total, 6, np.int32)
    alignments = {
        "id": ids,
        **{f"{side}_tokens": list_array(count, offsets, pa.int32()) for side, count in counts.items()},
        "byte_lengths": list_array(lengths, offsets, pa.int32()),
        "kinds": list_array(np.zeros(total, np.uint8), offsets, pa.uint8()),
        "ends": list_array(np.where(generator.random(total) < 0.5, 7, 0).astype(np.uint8), offsets, pa.uint8()),
        "assistant": list_array(np.zeros(0, bool), np.zeros_like(offsets), pa.bool_()),
    }
    sides = {f"{side}_tokens": random_tokens(generator, ids, count, offsets) for side, count in counts.items()}
    token_offsets = np.concatenate([[0], np.cumsum(counts["teacher"])])[offsets]
    logprobs = -generator.exponential(2, token_offsets[-1]).astype(np.float32)
    logprobs[token_offsets[:-1]] = np.nan
    boundary = -generator.exponential(0.5, token_offsets[-1]).astype(np.float32)
    return {
        "examples": {
            "id": ids,
            "split": pa.array(["train"] * texts, pa.string()),
            "text": texts_column,
            "messages": pa.array([None] * texts, pa.string()),
        },
        **sides,
        "alignments": alignments,
        "scores": {
            "id": ids,
            "logprobs": list_array(logprobs, token_offsets, pa.float32()),
            "boundary_logprobs": list_array(boundary, token_offsets, pa.float32()),
            "tokens": int(token_offsets[-1]),
        },
    }


def random_tokens(generator: np.random.Generator, ids: pa.Array, counts: Any, chunk_offsets: Any) -> dict[str, Any]:
    offsets = np.concatenate([[0], np.cumsum(counts)])[chunk_offsets]
    total, none = int(offsets[-1]), np.zeros_like(offsets)
    empty = {
        "turns": pa.int16(),
        "turn_bytes": pa.int32(),
        "uncovered_at": pa.int32(),
        "uncovered_bytes": pa.int32(),
    }
    return {
        "id": ids,
        "token_ids": list_array(generator.integers(0, SIZES.vocabulary, total).astype(np.int32), offsets, pa.int32()),
        "byte_lengths": list_array(np.full(total, 3, np.int32), offsets, pa.int32()),
        "kinds": list_array(np.zeros(total, np.uint8), offsets, pa.uint8()),
        "roles": pa.array([[] for _ in ids], pa.list_(pa.string())),
        **{name: list_array(np.zeros(0, type_.to_pandas_dtype()), none, type_) for name, type_ in empty.items()},
        "dropped": pa.array([None] * len(ids), pa.string()),
        "tokens": total,
    }


OBJECTIVE = ObjectiveConfig(temperature=5.0)
LIVE = ObjectiveConfig(temperature=5.0, terms={"alm": 1.0, "latents": 1.0})
"""for the stream alone: its batches then hold the teacher's tokens too"""
Batch = Mapping[str, Tensor]


def train_config() -> TrainConfig:
    return TrainConfig(batch_tokens=SIZES.batch_tokens, row_tokens=SIZES.row_tokens, shuffle_buffer=1000)


def batches(count: int) -> list[Batch]:
    with tempfile.TemporaryDirectory() as folder:
        stream = BatchStream(caches(Path(folder), 1, 40 * count), LIVE, train_config())
        return [on_device(batch) for batch in itertools.islice(iter(stream), count)]


def on_device(batch: Batch) -> Batch:
    return {name: tensor.to(device()) for name, tensor in batch.items()}


class TrainingCase:
    """A student in float32 under autocast to bfloat16, with its optimizer; and the same step by plain cross-entropy."""

    def __init__(self) -> None:
        self.student = placed(llama, torch.float32).train()
        self.vocabulary = vocabulary_of(self.student)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5, fused=True)

    def step(self, batch: Batch) -> None:
        self._update(self.loss(batch))

    def loss(self, batch: Batch) -> Tensor:
        with self._precision(), replaced_forward(self.student, self._loss):
            loss: Tensor = self.student(batch)
        return loss

    def _loss(self, batch: Batch) -> Tensor:
        losses = micro_batch_losses(self.student, batch, self.vocabulary, OBJECTIVE, LossCounts.of(batch))
        return losses.terms["alm"] + losses.terms["sft"]

    def bare_step(self, batch: Batch) -> None:
        ids, positions = batch["token_ids_BS"], batch["position_ids_BS"]
        labels = ids.masked_fill(~batch["predicted_N"].view_as(ids), -100)
        with self._precision():
            loss = self.student(input_ids=ids, position_ids=positions, labels=labels, use_cache=False).loss
        self._update(loss)

    def _update(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with matmul_precision("medium"), torch.autocast(device().type, torch.bfloat16):
            yield


def training_correctness() -> Lines:
    """The losses and gradients of one batch on the device against those in float64 on the processor."""
    batch = {name: tensor.cpu() for name, tensor in batches(1)[0].items()}
    ids = batch["token_ids_BS"]
    results = []
    for place, dtype in ((torch.device("cpu"), torch.float64), (device(), torch.float32)):
        model: Any = llama(2, SIZES.vocabulary if SMALL else 8192, 64)
        model.to(place, dtype)
        moved = {name: tensor.to(place) for name, tensor in batch.items()}
        moved["token_ids_BS"] = (ids % model.config.vocab_size).to(place)
        with matmul_precision("highest"):
            losses = micro_batch_losses(model, moved, vocabulary_of(model), OBJECTIVE, LossCounts.of(moved))
            total = losses.terms["alm"] + losses.terms["sft"]
            gradients = torch.autograd.grad(total, list(model.parameters()))
        results.append(([losses.terms[term].detach() for term in ("alm", "sft")], gradients))
    (exact, exact_gradients), (found, gradients) = results
    for term, one, other in zip(("alm", "sft"), found, exact, strict=True):
        yield Line(f"{term} in float32: error", abs(float(one) - float(other)) / abs(float(other)), "of the loss", 1e-4)
    errors = [
        float((one.cpu().double() - other).norm() / other.norm().clamp(min=1e-12))
        for one, other in zip(gradients, exact_gradients, strict=True)
    ]
    yield Line("gradients in float32: largest error", max(errors), "of their length", 1e-3)


def training_speed() -> Lines:
    data = batches(SIZES.steps)
    tokens = statistics.mean(float(batch["predicted_N"].sum()) for batch in data)
    case = TrainingCase()
    peaks = {name: peak_bytes(partial(step, data[0])) for name, step in (("bare", case.bare_step), ("ours", case.step))}
    ours, bare = (statistics.median(paced(step, data)) for step in (case.step, case.bare_step))
    flops = 3 * forward_flops(case.student, [batch["token_ids_BS"].cpu().numpy().ravel()[:1] for batch in data[:1]])
    yield Line("ALM and SFT from the cache", tokens / ours, "tokens/s")
    yield Line("plain cross-entropy", tokens / bare, "tokens/s")
    yield Line("step / plain step", ours / bare, "of the time", None if SMALL else 1.15)
    yield Line("model FLOP utilization, without attention", flops * tokens / ours / peak_flops())
    yield Line("peak memory, ours", peaks["ours"] / 1e9, "GB")
    yield Line("peak memory, plain", peaks["bare"] / 1e9, "GB")
    teacher = LiveTeacher(placed(llama, torch.bfloat16))
    vocabulary = vocabulary_of(teacher.model)
    live = statistics.median(paced(partial(live_step, case, teacher, vocabulary), data))
    yield Line("cached teacher / live teacher", ours / live, "of the time")


def paced(step: Callable[[Batch], object], data: list[Batch]) -> list[float]:
    return [seconds(partial(step, batch), 1, warm=int(number == 0)) for number, batch in enumerate(data)]


def live_step(case: TrainingCase, teacher: LiveTeacher, vocabulary: HeadVocabulary, batch: Batch) -> None:
    case.step({**batch, "teacher_logprobs_C": live_likelihoods(teacher, vocabulary, batch)})


@torch.no_grad()
def live_likelihoods(teacher: LiveTeacher, vocabulary: HeadVocabulary, batch: Batch) -> Tensor:
    """[C] of the batch's chunks, by the teacher's forward pass."""
    ids = batch["teacher_token_ids_BT"]
    hidden_MJ = teacher.hidden(batch)
    tokens, boundary = token_and_boundary_logprobs(
        hidden_MJ, ids.flatten().roll(-1), teacher.head, vocabulary.boundary_ids_K.to(hidden_MJ.device)
    )
    own, other = batch["aligned_token_A"], batch["aligned_teacher_token_A"]
    # the token before a chunk is the last of an aligned chunk too
    first = other[torch.searchsorted(own, batch["first_token_C"] - 1)] + 1
    last = other[torch.searchsorted(own, batch["last_token_C"])]
    covered = torch.ones(ids.numel(), dtype=torch.bool, device=ids.device)
    places = ChunkPlaces(covered, first, last, batch["starts_debiased_C"], batch["ends_debiased_C"])
    return chunk_logprobs(tokens.float().roll(1), boundary.float(), places)


def reader() -> Lines:
    """The stream alone, and its share of training steps on the device."""
    with tempfile.TemporaryDirectory() as folder:
        made = caches(Path(folder), 2 if SMALL else 4, 60 if SMALL else 2000)
        stream = iter(BatchStream(made, OBJECTIVE, train_config()))
        next(stream)  # compiles, fills the buffer
        started, tokens = time.perf_counter(), 0
        for batch in itertools.islice(stream, 5 if SMALL else 40):
            tokens += int(batch["predicted_N"].sum())
        yield Line("the stream alone", tokens / (time.perf_counter() - started), "student tokens/s")
        case, waited, taken = TrainingCase(), 0.0, 0.0
        case.step(on_device(next(stream)))
        for _ in range(SIZES.steps):
            synchronize()
            started = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - started
            case.step(on_device(batch))
            synchronize()
            taken += time.perf_counter() - started
        yield Line("waiting for the stream in training", waited / taken, "of the time", None if SMALL else 0.05)
