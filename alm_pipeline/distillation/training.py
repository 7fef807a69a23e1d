"""A student's training from the first or the last checkpointed step to the end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.distillation.adapters import attach_adapters
from alm_pipeline.distillation.checkpoints import last_checkpoint, saved_position
from alm_pipeline.distillation.isolation import check_isolation
from alm_pipeline.distillation.live_teacher import LiveTeacher, projections
from alm_pipeline.distillation.losses import attach_projections, detach_projections
from alm_pipeline.distillation.parameters import freeze
from alm_pipeline.distillation.stream import BatchStream
from alm_pipeline.distillation.trainer import AlmTrainer
from alm_pipeline.models import matmul_precision, quiet_transformers
from alm_pipeline.progress import Advance, track
from alm_pipeline.scoring.vocabulary import Vocabulary


class _Watcher(TrainerCallback):
    """Shows progress, and tells when a checkpoint is finished."""

    def __init__(self, trainer: AlmTrainer, advance: Advance, on_checkpoint: Callable[[], None]) -> None:
        self.trainer, self.advance, self.on_checkpoint = trainer, advance, on_checkpoint
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.finish_step()
        seconds, self.last = time.monotonic() - self.last, time.monotonic()
        rate = self.trainer.watched["tokens"] / seconds
        self.advance(1, f"KL {self.trainer.watched['kl']:.1e}, {rate:,.0f} tokens/s")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_checkpoint()


def train_student(
    model: PreTrainedModel,
    stream: Callable[[int, int], BatchStream],
    vocabulary: Vocabulary,
    objective: ObjectiveConfig,
    config: TrainConfig,
    checkpoints: Path,
    on_checkpoint: Callable[[], None],
    teacher: LiveTeacher | None = None,
) -> list[dict[str, float]]:
    """Train in place and return the log, one entry a step; goes on from the last whole checkpoint in `checkpoints`.

    `stream(rank, ranks)` gives a rank's batches; a checkpoint holds their position. `teacher` is there where a term of
    the objective needs it.
    """
    if not config.steps:
        return []
    for side in (model, teacher.model) if teacher else (model,):
        if config.row_tokens > 1:
            check_isolation(side, getattr(torch, config.dtype))
    adapters = attach_adapters(model, config.lora, config.seed) if config.lora else None
    if teacher:
        attach_projections(model, projections(teacher.model, model, objective, config.seed))
    last = last_checkpoint(checkpoints)
    first_step = int(last.name.rsplit("-", 1)[-1]) if last else 0
    arguments = _arguments(config, checkpoints)
    batches = stream(arguments.process_index, arguments.world_size)
    if last:
        batches.load_state_dict(saved_position(last, arguments.process_index))
    freeze(model, config.freeze)
    trainer = AlmTrainer(model, arguments, batches, vocabulary, objective, teacher, config.learning_rates)
    model.train()
    with track("distil", config.steps, "steps", already=first_step) as advance:
        trainer.add_callback(_Watcher(trainer, advance, on_checkpoint))
        with quiet_transformers(), matmul_precision("medium" if config.dtype == "bfloat16" else "highest"):
            if first_step < config.steps:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            else:
                trainer.load_finished(str(last))
    # its forward pass has accelerate's autocast around it until then
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    detach_projections(model)
    if adapters:
        adapters.merge_and_unload()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _arguments(config: TrainConfig, checkpoints: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=config.max_grad_norm,
        gradient_accumulation_steps=config.accumulation,
        lr_scheduler_type={"wsd": "warmup_stable_decay"}.get(config.schedule, config.schedule),
        lr_scheduler_kwargs=_schedule_settings(config),
        warmup_steps=config.warmup_steps,
        bf16=config.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=1,
        ignore_data_skip=True,  # the stream itself starts at the checkpoint's position
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )


def _schedule_settings(config: TrainConfig) -> dict[str, Any]:
    if config.schedule != "wsd":
        return {}
    steps = config.decay_steps or max(1, min(config.steps // 10, config.steps - config.warmup_steps))
    return {"num_decay_steps": steps, "decay_type": "linear"}
