"""A training step from the cache against one with the teacher in memory: `python -m benchmarks.step [--steps 6]`.

Gemma-3-270M teaches SmolLM2-135M math in bfloat16, the same batches in turn in one run: the student's forward
pass, loss, backward pass and optimizer step, once with the cached likelihoods of chunks, once with a teacher that reads
the batch and gives its two numbers per token first. Each one's peak memory is measured in a process of its own.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from alm_pipeline.config import AlmConfig, ObjectiveConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model, matmul_precision
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.alm import ChunkPlaces, chunk_logprobs
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.recipes import recipe
from alm_pipeline.scoring.head import token_and_boundary_logprobs
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.model.live_teacher import LiveTeacher
from alm_pipeline.training.model.terms import micro_batch_losses

Batch = dict[str, Tensor]
OBJECTIVE = ObjectiveConfig(temperature=5.0)
LIVE = ObjectiveConfig(temperature=5.0, terms={"alm": 1.0, "latents": 1.0})
"""for the stream alone: it makes the batches hold the teacher's tokens, too"""


def main() -> None:
    options = arguments()
    if options.only:
        print(peak(options.root, options.only, options.steps))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or scratch
        prepared(root)
        compare(root, options.steps)
        peaks = {only: measured_apart(root, only) for only in ("model", "cached", "live")}
        print("peak memory: " + ", ".join(f"{only} {gigabytes:.2f} GB" for only, gigabytes in peaks.items()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--root", help="keeps the caches for the next run")
    parser.add_argument("--only", choices=["model", "cached", "live"], help="print one way's peak memory in GB")
    return parser.parse_args()


def prepared(root: str) -> tuple[AlmConfig, Pipeline]:
    config = recipe("maths")
    corpus = config.texts.model_copy(update={"max_examples": 64})
    config = config.model_copy(update={"corpus": corpus})
    pipeline = Pipeline(config, root)
    pipeline.cache()
    return config, pipeline


def batches(config: AlmConfig, pipeline: Pipeline, steps: int) -> list[Batch]:
    stream = BatchStream(pipeline.caches, LIVE, config.train)
    return list(itertools.islice(iter(stream), steps))


class Run:
    """A student and what trains it; with a teacher where one is to be in memory."""

    def __init__(self, config: AlmConfig, live: bool) -> None:
        self.student = load_model(config.student.model, "float32")
        self.vocabulary = HeadVocabulary.of(self.student, LoadedTokenizer(config.student.model))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5)
        self.teacher = None
        if live:
            model = load_model(config.teacher, "bfloat16")
            self.teacher_vocabulary = HeadVocabulary.of(model, LoadedTokenizer(config.teacher))
            self.teacher = LiveTeacher(model, self.teacher_vocabulary.rows)

    def step(self, batch: Batch) -> float:
        if self.teacher:
            batch = {**batch, "teacher_logprobs_C": self.likelihoods(batch)}
        with torch.autocast("cpu", torch.bfloat16), matmul_precision("medium"):
            counts = LossCounts.of(batch)
            losses = micro_batch_losses(self.student, batch, self.vocabulary, OBJECTIVE, counts)
        losses.terms["alm"].backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses.terms["alm"].item()

    @torch.no_grad()
    def likelihoods(self, batch: Batch) -> Tensor:
        """[C] of the batch's chunks, by the teacher's forward pass."""
        assert self.teacher is not None
        ids = batch["teacher_token_ids_BT"]
        with matmul_precision("medium"):
            hidden = self.teacher.hidden(batch)
            tokens, boundary = token_and_boundary_logprobs(
                hidden, ids.flatten().roll(-1), self.teacher.head, self.teacher_vocabulary.boundary_ids_K
            )
        return chunk_logprobs(tokens.float().roll(1), boundary.float(), teacher_places(batch))


def teacher_places(batch: Batch) -> ChunkPlaces:
    """Return where the batch's chunks are among the teacher's positions."""
    own, teacher = batch["aligned_token_A"], batch["aligned_teacher_token_A"]
    # the token before a chunk is the last of an aligned chunk too
    first = teacher[torch.searchsorted(own, batch["first_token_C"] - 1)] + 1
    covered = torch.ones(batch["teacher_token_ids_BT"].numel(), dtype=torch.bool)
    last = teacher[torch.searchsorted(own, batch["last_token_C"])]
    return ChunkPlaces(covered, first, last, batch["starts_debiased_C"], batch["ends_debiased_C"])


def compare(root: str, steps: int) -> None:
    config, pipeline = prepared(root)
    data = batches(config, pipeline, steps + 1)
    cached, live = Run(config, live=False), Run(config, live=True)
    check(live, data[0])
    rounds = []
    for number, batch in enumerate(data):
        teacher = timed(partial(live.likelihoods, batch))
        seconds = [timed(partial(run.step, batch)) for run in (cached, live)]
        if number:  # the first is there to warm up
            rounds.append((*seconds, teacher))
            print("cached {:.2f} s, live {:.2f} s, of which the teacher {:.2f} s".format(*rounds[-1]), flush=True)
    ratios = [one / other for one, other, _ in rounds]
    added = [(one + teacher) / other for one, other, teacher in rounds]
    print(f"cached / live: median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"(cached + the teacher's pass) / live: median {median(added):.2f}")


def check(live: Run, batch: Batch) -> None:
    """Both ways learn from the same numbers, to the teacher's own precision of bfloat16."""
    difference = (live.likelihoods(batch) - batch["teacher_logprobs_C"]).abs().mean()
    print(f"live and cached likelihoods of chunks differ by {difference:.4f} nats on average")
    assert difference < 0.05


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def measured_apart(root: str, only: str) -> float:
    command = [sys.executable, "-m", "benchmarks.step", "--root", root, "--only", only, "--steps", "2"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak(root: str, only: str, steps: int) -> float:
    """GB; `model` is what importing, the data and the student itself take."""
    config, pipeline = prepared(root)
    data = batches(config, pipeline, steps)
    run = Run(config, live=only == "live")
    for batch in data if only != "model" else []:
        run.step(batch)
    # not `getrusage`: it begins with the peak of the process that started this one
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    main()
