"""A short measurement of how fast this machine scores and trains: some batches of random tokens through the models."""

import time
from collections.abc import Callable

import numpy as np
import torch

from alm_pipeline.models.loading import all_devices, default_device, embedding_rows
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.duration import work_of
from alm_pipeline.planning.plan import Stage
from alm_pipeline.planning.speed.rates import record_rate, startup_seconds
from alm_pipeline.scoring.batching import DEFAULT_TOKENS
from alm_pipeline.scoring.scorer import Scorer

_EXAMPLE_TOKENS = 256
_LEAST_S = 3.0
"""how long is measured, after a first batch, which is slower"""


def measure(pipeline: Pipeline) -> dict[Stage, float]:
    """Return the teacher tokens scored, and the student tokens trained on, per second; record both for later plans.

    Scoring is measured with transformers only.

    Loads both models one after the other, and takes as much memory as a run. Raises UserError as loading them does.
    """
    measured: dict[Stage, float] = {"train": _trained_per_second(pipeline)}
    if pipeline.config.score.engine == "transformers":  # another machine may score, and is not loaded for a plan
        measured = {"score": _scored_per_second(pipeline), **measured}
    for stage, rate in measured.items():
        record_rate(work_of(pipeline, stage), rate * _LEAST_S, _LEAST_S + startup_seconds(stage))
    return measured


def _scored_per_second(pipeline: Pipeline) -> float:
    config = pipeline.config.score
    devices = [None] if config.device_map else list(config.devices or all_devices())
    scorer = Scorer.load(pipeline.teacher, config, devices[0])
    count = max(1, (config.batch_tokens or DEFAULT_TOKENS) // _EXAMPLE_TOKENS)
    length = min(_EXAMPLE_TOKENS, pipeline.teacher.context_length or _EXAMPLE_TOKENS)
    generator = np.random.default_rng(0)
    ids = generator.integers(0, pipeline.teacher.tokenizer.highest_id, (count, length)).astype(np.int32)
    # each device scores with a copy of its own
    return len(devices) * _per_second(count * length, lambda: scorer.score(list(ids)))


def _trained_per_second(pipeline: Pipeline) -> float:
    """Return the speed of plain language modeling, whose forward and backward pass are those of ALM."""
    config, device = pipeline.config.train, default_device()
    model = pipeline.source.load("float32").train()
    length = min(config.row_tokens, config.batch_tokens, pipeline.source.context_length or config.row_tokens)
    ids = torch.randint(embedding_rows(model), (max(1, config.batch_tokens // length), length), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU

    return _per_second(ids.numel(), step)


def _per_second(tokens: int, work: Callable[[], object]) -> float:
    work()
    start, done = time.monotonic(), 0
    while time.monotonic() - start < _LEAST_S:
        work()
        done += tokens
    return done / (time.monotonic() - start)
