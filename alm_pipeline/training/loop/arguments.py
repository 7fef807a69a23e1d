"""The trainer's arguments for a configured training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import torch
from transformers import TrainingArguments

from alm_pipeline.config import ComputationDtype, TrainConfig
from alm_pipeline.training.parallel.processes import batches_per_process


@dataclass
class AlmTrainingArguments(TrainingArguments):
    """Arguments for one device per process; with `sharded`, for a model that is split between the processes."""

    sharded: bool = False

    @property
    def n_gpu(self) -> int:
        """At most 1: with several visible GPUs, the trainer would copy the model to all of them in this process."""
        return min(1, int(super().n_gpu))

    @property
    def place_model_on_device(self) -> bool:
        """False for a sharded model: its parts are moved to the device one by one."""
        return not self.sharded


def training_arguments(config: TrainConfig, checkpoints: Path, *, sharded: bool = False) -> AlmTrainingArguments:
    scheduler, scheduler_settings = _scheduler(config)
    return AlmTrainingArguments(
        output_dir=str(checkpoints),
        sharded=sharded,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=config.max_grad_norm,
        gradient_accumulation_steps=batches_per_process(config),
        lr_scheduler_type=scheduler,
        lr_scheduler_kwargs=scheduler_settings,
        warmup_steps=config.warmup_steps,
        bf16=_is_autocast(config.dtype),
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        ignore_data_skip=True,  # the stream itself starts at the checkpoint's position
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        ddp_find_unused_parameters=True,  # some terms do not use the head or the last norm
    )


def _scheduler(config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """Return transformers' name for the schedule, and its settings."""
    match config.schedule:
        case "linear" | "cosine":
            return config.schedule, {}
        case "wsd":
            steps = config.decay_steps or max(1, min(config.steps // 10, config.steps - config.warmup_steps))
            return "warmup_stable_decay", {"num_decay_steps": steps, "decay_type": "linear"}
        case _:
            assert_never(config.schedule)


def _is_autocast(dtype: ComputationDtype) -> bool:
    match dtype:
        case "float32":
            return False
        case "bfloat16":
            return True
        case _:
            assert_never(dtype)
