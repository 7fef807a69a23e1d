"""A training step against the model's bare one: `python -m benchmarks.train [--steps 6] [--root FOLDER]`.

Gemma-3-270M teaches SmolLM2-135M math, as the recipe does: `train_student` itself runs, from the cache, and between
its steps a second student has the same packed batch: transformers' own forward pass and cross-entropy, backward pass,
clipping and optimizer. What stands between two batches is the step: logging, progress, everything. The time in which
the stream makes a batch is waiting for data, and part of the step. On a GPU, `--batch-tokens 32768 --row-tokens 2048`,
or as many as fit.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from alm_pipeline.config import TrainConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.loop.train import train_student
from alm_pipeline.training.loop.training_run import TrainingRun
from benchmarks.step import prepared

Batch = dict[str, Tensor]
# bfloat16 without sparsity, in floating-point operations a second, by what the device's name holds
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


class Seconds(NamedTuple):
    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Seconds":
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def until(self, end: "Seconds") -> "Seconds":
        return Seconds(end.wall - self.wall, end.processor - self.processor)


class Step(NamedTuple):
    tokens: int
    """of examples: padding is none"""
    wait: Seconds
    trained: Seconds
    """the wait for its batch not among them"""
    bare: Seconds


class Bare:
    """The floor: a step of plain cross-entropy by transformers' own loss."""

    def __init__(self, model: PreTrainedModel, config: TrainConfig) -> None:
        self.model, self.config = model.train(), config
        self.optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, (0.9, 0.95), weight_decay=config.weight_decay, fused=True
        )

    def step(self, batch: Batch) -> None:
        self.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, batch: Batch) -> Tensor:
        device = self.model.device
        ids, positions, predicted = (
            batch[name].to(device) for name in ("token_ids_BS", "position_ids_BS", "predicted_N")
        )
        labels = ids.masked_fill(~predicted.view_as(ids), -100)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            loss: Tensor = self.model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False).loss
        return loss


class Timed(IterableDataset[Batch]):
    """A stream that sees when the trainer is done with each batch, and then runs the bare step on it."""

    def __init__(self, stream: BatchStream, bare: Bare) -> None:
        self.stream, self.bare = stream, bare
        self.steps: list[Step] = []

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.stream)
        while True:
            asked = Seconds.now()
            batch = next(batches)
            given = Seconds.now()
            yield batch
            done = Seconds.now()
            self.bare.step(batch)
            parts = asked.until(given), given.until(done), done.until(Seconds.now())
            self.steps.append(Step(int(batch["predicted_N"].sum()), *parts))
            print("wait {:.4f} s, step {:.2f} s, bare {:.2f} s".format(*(part.wall for part in parts)), flush=True)

    def state_dict(self) -> dict[str, object]:
        return self.stream.state_dict()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        config, pipeline = prepared(options.root or scratch)
        # two more: the first is there to warm up, and nothing is asked for behind the last
        changes = {"steps": options.steps + 2, "checkpoint_steps": options.steps + 3, "warmup_steps": 0}
        given = {"batch_tokens": options.batch_tokens, "row_tokens": options.row_tokens}
        train = config.train.model_copy(update=changes | {name: value for name, value in given.items() if value})
        trained, other = (pipeline.distillation.initial_student().model for _ in range(2))
        stream = Timed(BatchStream(pipeline.caches, config.objective, train), Bare(other, train))
        vocabulary = HeadVocabulary.of(trained, LoadedTokenizer(config.student.model))
        flops = forward_flops(stream.bare, next(iter(stream.stream)))
        checkpoints = Path(scratch, "checkpoints")
        train_student(TrainingRun(trained, cast(BatchStream, stream), vocabulary, config.objective, train, checkpoints))
    report(stream.steps[1:], 3 * flops, options.peak_teraflops)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--root", help="keeps the caches for the next run")
    parser.add_argument("--batch-tokens", type=int, help="instead of the recipe's")
    parser.add_argument("--row-tokens", type=int)
    parser.add_argument("--peak-teraflops", type=float, help="of the GPU in bfloat16, where it is not a known one")
    return parser.parse_args()


@torch.no_grad()
def forward_flops(bare: Bare, batch: Batch) -> float:
    """A position's, of the bare forward pass; the backward pass takes twice as many."""
    with FlopCounterMode(display=False) as counter:
        bare.loss(batch)
    return float(counter.get_total_flops()) / batch["token_ids_BS"].numel()


def report(steps: list[Step], flops: float, peak_teraflops: float | None) -> None:
    for clock in Seconds._fields:
        ratios = [
            (getattr(step.trained, clock) + getattr(step.wait, clock)) / getattr(step.bare, clock) for step in steps
        ]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{clock} time, step / bare step: median {median(ratios):.2f} ({spread})")
    tokens, waited = sum(step.tokens for step in steps), sum(step.wait.wall for step in steps)
    trained, bare = waited + sum(step.trained.wall for step in steps), sum(step.bare.wall for step in steps)
    print(
        f"{tokens / trained:,.0f} tokens/s, the bare step {tokens / bare:,.0f}; waiting for data {waited / trained:.2%}"
    )
    if peak := device_peak(peak_teraflops):
        used, by_bare = (flops * tokens / seconds / peak for seconds in (trained, bare))
        print(f"model FLOP utilization {used:.1%}, the bare step {by_bare:.1%}")


def device_peak(given: float | None) -> float | None:
    """Floating-point operations a second; None where the device is not known."""
    if given:
        return given * 1e12
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for kind, peak in PEAKS.items() if kind in name), None)


if __name__ == "__main__":
    main()
