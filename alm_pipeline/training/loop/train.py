"""Trains a student from the first step, or from the last checkpoint, to the end."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_never

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alm_pipeline.config import Sharding
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.runtime.progress import Advance, track
from alm_pipeline.training.loop.arguments import training_arguments
from alm_pipeline.training.loop.checkpoints import (
    checkpoint_name,
    checkpoint_step,
    last_checkpoint,
    load_stream_state,
    problem_of,
)
from alm_pipeline.training.loop.step_metrics import ProgressNote
from alm_pipeline.training.loop.trainer import AlmTrainer
from alm_pipeline.training.loop.training_run import TrainingRun
from alm_pipeline.training.model.adapters import attach_adapters
from alm_pipeline.training.model.execution import configured_execution, using_attention
from alm_pipeline.training.model.isolation import check_isolation, check_positions
from alm_pipeline.training.model.parameters import freeze, freeze_unread_parts
from alm_pipeline.training.model.projections import attach_projections, detach_projections
from alm_pipeline.training.model.terms import make_projections
from alm_pipeline.training.parallel.processes import broadcast_from_first, this_process
from storage.errors import UserError


class TrainingProgress(TrainerCallback):
    """Shows the progress, and reports finished checkpoints."""

    def __init__(self, trainer: AlmTrainer, advance: Advance, on_checkpoint: Callable[[], None]) -> None:
        self.trainer, self.advance, self.on_checkpoint = trainer, advance, on_checkpoint
        self.note = ProgressNote()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.collect_step_metrics()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.advance(1, self.note.describe(logs))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if this_process().is_first:
            self.on_checkpoint()


class EvaluationSchedule(TrainerCallback):
    """Starts the moving average, and requests evaluations when they are due."""

    def __init__(self, trainer: AlmTrainer, checkpoint: Path | None) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.start_ema(self.checkpoint)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        evaluations = self.trainer.run.evaluations
        control.should_evaluate = bool(evaluations and evaluations.is_due(state.global_step, args.max_steps))


def train_student(run: TrainingRun) -> list[dict[str, float]]:
    """Train the student in place, from the last complete checkpoint. Returns the log, with one entry per step.

    Processes that train together all call this. Afterward only the first process's model is the student. Raises
    UserError if a loss or gradient is NaN or infinite, or a loss exceeds `train.diverged_at` times the recent mean.
    """
    checkpoint = _agreed_checkpoint(run)
    if run.evaluations:
        run.evaluations.load(checkpoint) if checkpoint else run.evaluations.begin(run.model)
    if not run.config.steps:
        return []
    _check_batches(run)
    if checkpoint:
        run.stream.load_state_dict(load_stream_state(checkpoint))
    first_step = checkpoint_step(checkpoint) if checkpoint else 0
    with (
        _trainable_parts(run),
        _trainer(run) as trainer,
        run.run_log.attached(trainer, first_step) if run.run_log else contextlib.nullcontext(),
    ):
        _train_with_progress(trainer, checkpoint)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _agreed_checkpoint(run: TrainingRun) -> Path | None:
    """Return the first process's last whole checkpoint, in this process's folder."""
    last = _last_checkpoint(run) if this_process().is_first else None
    name = broadcast_from_first(last.name if last else None)
    return run.checkpoints / name if name else None


def _last_checkpoint(run: TrainingRun) -> Path | None:
    if run.evaluations is None:
        return last_checkpoint(run.checkpoints)
    return last_checkpoint(run.checkpoints, run.evaluations.step_needed_by)


def _check_batches(run: TrainingRun) -> None:
    """Check the positions of both models and, with the attentions that they have during training, their packed rows."""
    dtype: torch.dtype = getattr(torch, run.config.dtype)
    models = (run.model, *([run.teacher.model] if run.teacher else []))
    for model in models:
        check_positions(model)
    if run.config.row_tokens > 1:
        with using_attention(run.model, run.config.attention):
            for model in models:
                check_isolation(model, dtype)


@contextmanager
def _trainable_parts(run: TrainingRun) -> Iterator[None]:
    """Add adapters and projections to the model, and freeze parameters. At the end, merge the first, remove the others.

    Only the first process merges adapters, since the others do not have the whole student.
    """
    model, config, teacher = run.model, run.config, run.teacher
    adapters = attach_adapters(model, config.lora, config.seed) if config.lora else None
    if teacher:
        attach_projections(model, make_projections(teacher.model, model, run.objective, config.seed))
    freeze_unread_parts(model)
    freeze(model, config.freeze)
    yield
    # until now accelerate's autocast wraps its forward pass
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    model.eval()
    detach_projections(model)
    if adapters and this_process().is_first:
        adapters.merge_and_unload()


def _splits_model(sharding: Sharding) -> bool:
    match sharding:
        case "none":
            return False
        case "fsdp":
            return True
        case _:
            assert_never(sharding)


@contextmanager
def _trainer(run: TrainingRun) -> Iterator[AlmTrainer]:
    """Yield the trainer. At the end the first process's model is complete and on its device."""
    model, attention = run.model, run.model.config._attn_implementation
    sharded = _splits_model(run.config.sharding) and this_process().count > 1
    arguments = training_arguments(run.config, run.checkpoints, sharded=sharded)
    if not sharded:
        with configured_execution(model, run.config):
            yield AlmTrainer(model, arguments, run, attention)
        return
    device, full_model = model.device, model.cpu() if this_process().is_first else None
    trained = copy.deepcopy(model) if full_model else model.cpu()
    with configured_execution(trained, run.config):
        yield AlmTrainer(trained, arguments, run, attention, full_model)
    if full_model:
        full_model.to(device)  # type: ignore[arg-type]  # torch.nn.Module.to takes a device


def _train_with_progress(trainer: AlmTrainer, checkpoint: Path | None) -> None:
    trainer.model.train()
    already = checkpoint_step(checkpoint) if checkpoint else 0
    with track("train", trainer.args.max_steps, "steps", already=already) as advance:
        trainer.add_callback(TrainingProgress(trainer, advance, trainer.run.on_checkpoint))
        trainer.add_callback(EvaluationSchedule(trainer, checkpoint))
        with quiet_transformers(), matmul_precision("medium" if trainer.args.bf16 else "highest"):
            _train_to_the_end(trainer, checkpoint)


def _train_to_the_end(trainer: AlmTrainer, checkpoint: Path | None) -> None:
    """Train, unless the checkpoint is the end. Then load the weights that become the student."""
    evaluations = trainer.run.evaluations
    stopped_early = bool(evaluations and evaluations.should_stop)
    if checkpoint and (stopped_early or checkpoint_step(checkpoint) == trainer.args.max_steps):
        trainer.load_final_state(checkpoint)
        step_of_weights = None
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        step_of_weights = trainer.state.global_step
    step = trainer.state.global_step
    chosen = evaluations.chosen_step(step) if evaluations else step
    if chosen == step_of_weights:
        trainer.load_chosen_weights(None)
        return
    best = trainer.run.checkpoints / checkpoint_name(chosen)
    if this_process().is_first and (problem := problem_of(best)):
        raise UserError(
            f"{best}: the student's weights can't be read from it: {problem}. Run it again: it goes on from a whole "
            "checkpoint, or from the beginning"
        )
    trainer.load_chosen_weights(best)
