"""Training a student on cached teacher scores: `transformers.Trainer` with the ALM objective and the cached stream."""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from alm_pipeline.config import ObjectiveConfig, Term, TrainConfig
from alm_pipeline.distillation.live_teacher import LiveTeacher, projections
from alm_pipeline.distillation.losses import attach_projections, detach_projections, micro_batch_losses
from alm_pipeline.distillation.parameters import freeze, parameter_groups
from alm_pipeline.distillation.stream import BatchStream
from alm_pipeline.distillation.watching import StepWatch
from alm_pipeline.models import matmul_precision, quiet_transformers
from alm_pipeline.objective.batch_loss import Counts
from alm_pipeline.objective.weights import gradmag, last_layer, weights_at
from alm_pipeline.progress import Advance, track
from alm_pipeline.scoring.vocabulary import Vocabulary
from storage.errors import UserError

_LAST_WRITTEN = "trainer_state.json"


class AlmTrainer(Trainer):
    """Trains on batches of `BatchStream`."""

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        stream: BatchStream,
        vocabulary: Vocabulary,
        objective: ObjectiveConfig,
        teacher: LiveTeacher | None = None,
        learning_rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model=model, args=arguments, train_dataset=stream)
        self.learning_rates = learning_rates or {}
        self.model_accepts_loss_kwargs = True  # the loss is a mean over the global batch already
        self.stream: BatchStream = stream
        self.objective: ObjectiveConfig = objective
        self.teacher: LiveTeacher | None = teacher
        self.vocabulary = vocabulary
        self.last_layer = last_layer(model.base_model)
        self.watched: dict[str, float] = {}
        self._watch = StepWatch(self.accelerator)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """With the rates of `learning_rates`."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            decayed = self.get_decay_parameter_names(trained)
            groups = parameter_groups(trained, decayed, self.args.weight_decay, self.learning_rates)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = kind(groups, **settings)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.stream, batch_size=None)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """A step's micro-batches, and what their losses are means over."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:  # of a stream that ends
            return [], None
        counts = Counts.of(*batches)
        return batches, counts.on_all_devices(lambda own: self.accelerator.reduce(own.to(device), "sum"))

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The weighted terms of a micro-batch; what is watched goes to the next log entry."""
        losses = micro_batch_losses(model, inputs, self.vocabulary, self.objective, num_items_in_batch, self.teacher)
        weights: Mapping[Term, float | Tensor] = weights_at(self.objective, self.state.global_step)
        if self.objective.balance == "gradmag":
            weights = gradmag(losses.terms, weights, self.last_layer)
        loss = torch.stack([losses.terms[term] * weight for term, weight in weights.items()]).sum()
        self._watch.add(losses, weights, inputs)
        # devices' gradients are averaged, and each one's loss is its part of the sum
        devices: int = self.accelerator.num_processes
        return loss * devices

    def finish_step(self) -> None:
        self.watched = self._watch.told()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, **self.watched} if "loss" in logs else logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """The stream's position goes beside the random numbers' states: each rank writes its own of both."""
        super()._save_rng_state(output_dir)
        file = Path(output_dir, _stream_file(self.args.process_index))
        file.write_text(json.dumps(self.stream.state_dict()) + "\n", encoding="utf-8")

    def load_finished(self, checkpoint: str) -> None:
        """The weights and log of the last step's checkpoint: `train` would go one step on from there."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint, _LAST_WRITTEN)))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counted from `input_ids`, which packed rows do not have


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
    if teacher:
        attach_projections(model, projections(teacher.model, model, objective, config.seed))
    last = last_checkpoint(checkpoints)
    first_step = int(last.name.rsplit("-", 1)[-1]) if last else 0
    arguments = _arguments(config, checkpoints)
    batches = stream(arguments.process_index, arguments.world_size)
    if last:
        batches.load_state_dict(_saved_position(last, arguments.process_index))
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
    model.eval()
    detach_projections(model)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _saved_position(checkpoint: Path, rank: int) -> dict[str, Any]:
    try:
        position: dict[str, Any] = json.loads((checkpoint / _stream_file(rank)).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: is not there: go on with as many processes as wrote the checkpoint, "
            "or delete it to start again"
        ) from error
    return position


def _stream_file(rank: int) -> str:
    return f"stream_{rank}.json"


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


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The latest whole checkpoint; what a kill left half-written is removed."""
    whole = []
    for folder in checkpoints.glob("checkpoint-*"):
        if _is_whole(folder):
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.rsplit("-", 1)[-1]), default=None)


def _is_whole(folder: Path) -> bool:
    try:
        return isinstance(json.loads((folder / _LAST_WRITTEN).read_text()), dict)
    except (OSError, json.JSONDecodeError):
        return False
