"""The training of a hypernetwork: a new tokenizer each step, the model unchanged, and checkpoints to the byte.

Shapes: N positions of a batch.
"""

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alm_pipeline.config import ObjectiveConfig, Term
from alm_pipeline.hypernetwork.batches import BatchMaker, DrawnBatch, TextRows, TextStream, boundary_ids
from alm_pipeline.hypernetwork.drawn_tables import DrawnRows
from alm_pipeline.hypernetwork.evaluation import HypernetEvaluator, means
from alm_pipeline.hypernetwork.frozen_model import FrozenModel
from alm_pipeline.hypernetwork.networks.hypernetwork import weights
from alm_pipeline.hypernetwork.networks.low_rank import LowRankNetwork
from alm_pipeline.hypernetwork.sampling.sampler import TokenizerSampler
from alm_pipeline.hypernetwork.settings import TERMS, HypernetConfig, HypernetTrainConfig
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.objective.batch_loss import LossCounts, ScoredBatch
from alm_pipeline.objective.term_weights import weights_at
from alm_pipeline.runtime.progress import show_line, track
from alm_pipeline.training.data.row_stream import StreamPosition
from alm_pipeline.training.loop.checkpoints import UNFINISHED, checkpoint_name, finish_checkpoint, last_checkpoint
from storage.errors import UserError

METRICS = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        *((term, pa.float64()) for term in TERMS),
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),
        ("tokens", pa.int64()),
        ("chunks", pa.int64()),
        ("vocabulary", pa.int64()),
        ("new_tokens", pa.int64()),
        ("pretokenizer", pa.string()),
    ]
)
"""The columns of a hypernetwork's `metrics.parquet`, one row per step.

`loss` is the weighted sum of the terms; a term that is not in the objective is null. `vocabulary` is the number of the
drawn tokenizer's tokens, `new_tokens` those of them that have several pieces, and `pretokenizer` how it splits texts.
"""
_BETAS = (0.9, 0.95)
_LAST_SHARE = 0.1
"""of the learning rate, at the last step"""
_NEGATIVES_KEY = 1
"""keeps the draws of negatives apart from those of the step's tokenizer"""
_NETWORK, _AVERAGE, _BEST = "network.safetensors", "average.safetensors", "best.safetensors"
_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"


@dataclass
class TrainingState:
    """What a checkpoint holds besides weights."""

    step: int = 0
    position: StreamPosition = field(default_factory=StreamPosition)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, object]] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> "TrainingState":
        values = json.loads(text)
        position = values.pop("position")
        return cls(position=StreamPosition(**{**position, "unit_rows": tuple(position["unit_rows"])}), **values)

    @property
    def best_step(self) -> int:
        """The step of the lowest mean so far; the earliest of equal ones."""
        found = means(self.evaluations)
        return min(found, key=lambda step: (found[step], step))

    def should_stop(self, patience: int | None) -> bool:
        """Whether the last `patience` evaluations are all after the best one."""
        return patience is not None and sum(step > self.best_step for step in means(self.evaluations)) >= patience


@dataclass(frozen=True)
class HypernetTraining:
    """A network with everything that its training reads."""

    config: HypernetConfig
    frozen: FrozenModel
    network: nn.Module
    sampler: TokenizerSampler
    stream: TextStream
    maker: BatchMaker
    evaluator: HypernetEvaluator
    checkpoints: Path
    on_checkpoint: Callable[[], None] = lambda: None
    """called after each checkpoint"""

    def run(self) -> TrainingState:
        """Train from the last checkpoint on, and leave the best network's weights in the network.

        Raises UserError if a loss or a gradient is NaN or infinite.
        """
        optimizer = self._optimizer()
        state, best = self._resume(optimizer)
        if not state.evaluations:
            state.evaluations += self.evaluator.baselines()
            best = self._evaluate(state, best)
        steps, patience = self.config.train.steps, self.config.evaluation.patience
        with (
            track("train hypernetwork", steps, "steps", already=state.step) as advance,
            matmul_precision("highest"),
        ):
            for rows, batch in self._batches(state):
                state.metrics.append(self._step(optimizer, batch, state.step))
                self._update_average(state.step)
                state.step, state.position = state.step + 1, rows.position
                advance(1)
                if state.step % self.config.evaluation.steps == 0 or state.step == steps:
                    best = self._evaluate(state, best)
                is_last = state.step == steps or state.should_stop(patience)
                if state.step % self.config.train.checkpoint_steps == 0 or is_last:
                    self._keep(state, optimizer, best)
                if is_last:
                    break
        self.network.load_state_dict(best)
        return state

    def _batches(self, state: TrainingState) -> Iterator[tuple[TextRows, DrawnBatch]]:
        """Yield each step's batch; a thread makes the next one meanwhile."""
        if state.step >= self.config.train.steps or state.should_stop(self.config.evaluation.patience):
            return
        texts = self.stream.texts(self.config.train.texts, state.position)
        steps = itertools.count(state.step)

        def make() -> tuple[TextRows, DrawnBatch]:
            rows = next(texts)
            return rows, self.maker.make(rows.rows, self.sampler.sample(next(steps)))

        with ThreadPoolExecutor(1, "drawn-batches") as thread:
            following = thread.submit(make)
            try:
                while True:
                    made = following.result()
                    following = thread.submit(make)
                    yield made
            finally:
                following.exception()  # the stream can't be closed while it is read
                texts.close()  # type: ignore[attr-defined]  # a generator

    def _step(self, optimizer: torch.optim.Optimizer, batch: DrawnBatch, step: int) -> dict[str, Any]:
        train = self.config.train
        random = np.random.default_rng([train.seed, step, _NEGATIVES_KEY])
        rows = DrawnRows.of(batch.drawn, batch.used, self.config.negatives, random)
        share = schedule(step, train)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * share
        optimizer.zero_grad()
        terms, counts = step_terms(self.frozen, self.network, batch, rows, self.config.objective)
        weighted = weights_at(self.config.objective, step)
        loss = torch.stack([terms[term] * weight for term, weight in weighted.items()]).sum()
        loss.backward()
        most = train.max_grad_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), most))
        logged: dict[str, Any] = {
            "step": step + 1,
            "loss": float(loss.detach()),
            **{term: float(terms[term].detach()) if term in weighted else None for term in TERMS},
            "learning_rate": self.config.learning_rate * share,
            "grad_norm": norm,
            "tokens": int(counts.tokens),
            "chunks": int(counts.chunks),
            "vocabulary": batch.drawn.size,
            "new_tokens": len(batch.drawn.new),
            "pretokenizer": batch.drawn.pretokenizer,
        }
        if not math.isfinite(logged["loss"]) or not math.isfinite(norm):
            raise UserError(
                f"the training of the hypernetwork stopped at step {step + 1}: the loss is {logged['loss']}, the norm "
                f"of its gradient {norm}: lower train.learning_rate, or set train.dtype to float32"
            )
        optimizer.step()
        return logged

    @cached_property
    def average(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return copy.deepcopy(self.network).eval() if self.config.train.ema else self.network

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        if self.config.train.ema is None:
            return
        kept = min(self.config.train.ema, (1 + step) / (10 + step))
        for average, trained in zip(self.average.parameters(), self.network.parameters(), strict=True):
            average.lerp_(trained, 1 - kept)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW with the groups' full learning rates as `base_lr`."""
        train, factor = self.config.train, self.config.train.channel_factor
        channels: list[nn.Parameter] = []
        if isinstance(self.network, LowRankNetwork):
            channels = [*self.network.gains, *self.network.offsets]
        others = [value for value in self.network.parameters() if not any(value is channel for channel in channels)]
        rates = [(others, self.config.learning_rate), (channels, self.config.learning_rate * factor)]
        groups = [{"params": values, "lr": rate, "base_lr": rate} for values, rate in rates if values]
        return torch.optim.AdamW(groups, betas=_BETAS, weight_decay=train.weight_decay)

    def _evaluate(self, state: TrainingState, best: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add an evaluation to the state; return the weights of the best network so far."""
        state.evaluations += self.evaluator.evaluate(self.average.eval(), state.step)
        self.network.train()
        found = means(state.evaluations)
        show_line(f"step {state.step}: held-out bits per byte {found[state.step]:.4f}, mean of all tokenizers")
        return _copies(self.average) if state.best_step == state.step else best

    def _keep(self, state: TrainingState, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]) -> None:
        """Write a checkpoint, and remove the one before."""
        unfinished = self.checkpoints / UNFINISHED / checkpoint_name(state.step)
        unfinished.mkdir(parents=True, exist_ok=True)
        save_file(weights(self.network), unfinished / _NETWORK)
        save_file(_copies(self.average), unfinished / _AVERAGE)
        save_file(best, unfinished / _BEST)
        save_file(_moments(self.network, optimizer), unfinished / _OPTIMIZER)
        (unfinished / _STATE).write_text(state.to_json(), encoding="utf-8")
        finish_checkpoint(unfinished, self.checkpoints)
        self.on_checkpoint()

    def _resume(self, optimizer: torch.optim.Optimizer) -> tuple[TrainingState, dict[str, Tensor]]:
        """Load the last checkpoint, if there is one; return its state and the best weights so far."""
        self.network.train()
        checkpoint = last_checkpoint(self.checkpoints)
        if checkpoint is None:
            return TrainingState(), _copies(self.network)
        self.network.load_state_dict(load_file(checkpoint / _NETWORK))
        self.average.load_state_dict(load_file(checkpoint / _AVERAGE))
        _set_moments(self.network, optimizer, load_file(checkpoint / _OPTIMIZER))
        state = TrainingState.of_json((checkpoint / _STATE).read_text(encoding="utf-8"))
        return state, load_file(checkpoint / _BEST)


def step_terms(
    frozen: FrozenModel, network: nn.Module, batch: DrawnBatch, rows: DrawnRows, objective: ObjectiveConfig
) -> tuple[dict[Term, Tensor], LossCounts]:
    """Return the terms of a step's loss that the objective has, and what they are averaged over."""
    device = frozen.device
    fields = {name: value.to(device) for name, value in batch.fields.items()}
    ids_BS = torch.from_numpy(rows.places)[batch.fields["token_ids_BS"]]
    raised_V = None if rows.raised is None else torch.from_numpy(rows.raised).to(device)
    tables = rows.tables(network, frozen.source)
    numbers = frozen.next_tokens(tables, ids_BS, boundary_ids(batch.drawn, rows.places), raised_V=raised_V)
    counts = LossCounts.of(fields)
    scored = ScoredBatch.of(*numbers[:2], fields, objective, counts)
    losses: Mapping[Term, Callable[[], Tensor]] = {"alm": scored.alm, "sft": scored.sft}
    return {term: losses[term]() for term in objective.terms}, counts


def schedule(step: int, train: HypernetTrainConfig) -> float:
    """Return the share of the learning rate after `step` steps: a warm-up, and a straight line to a tenth."""
    warm_up = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return warm_up * (1 - (1 - _LAST_SHARE) * step / max(1, train.steps))


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights(network).items()}


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return Adam's state by parameter; no pickle is written."""
    return {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _set_moments(network: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    for name, parameter in network.named_parameters():
        found = {key: moments.get(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
        for key, value in found.items():
            if value is not None:
                optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
