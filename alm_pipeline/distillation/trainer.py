"""Training a student on cached teacher scores: `transformers.Trainer` with the ALM objective and the cached stream."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.distillation.stream import BatchStream
from alm_pipeline.models import matmul_precision, quiet_transformers
from alm_pipeline.objective.batch_loss import batch_loss
from alm_pipeline.progress import Advance, track
from alm_pipeline.scoring.head import hidden_states, output_head, token_and_boundary_logprobs
from storage.errors import UserError

_LAST_WRITTEN = "trainer_state.json"


class AlmTrainer(Trainer):
    """Trains on batches of `BatchStream`; the model needs a linear output head."""

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        stream: BatchStream,
        boundary_ids_K: Tensor,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__(model=model, args=arguments, train_dataset=stream)
        self.stream: BatchStream = stream
        self.objective: ObjectiveConfig = objective
        self.boundary_ids_K = boundary_ids_K.to(model.device)
        self.watched: dict[str, float] = {}
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.stream, batch_size=None)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """The objective of one batch; what is watched goes to the next log entry."""
        hidden_BSH = hidden_states(model, inputs["token_ids_BS"], inputs["position_ids_BS"])
        targets_N = inputs["token_ids_BS"].flatten().roll(-1)
        with torch.autocast(hidden_BSH.device.type, enabled=False):
            token_N, boundary_N = token_and_boundary_logprobs(
                hidden_BSH.flatten(0, 1).to(model.dtype), targets_N, output_head(model), self.boundary_ids_K
            )
        rest = {name: value for name, value in inputs.items() if not name.endswith("_BS")}
        result = batch_loss(token_N, boundary_N, **rest, objective=self.objective)
        self.watched = {
            "alm": float(result.alm),
            "kl": float(result.kl),
            "sft": float(result.sft),
            "chunks": len(inputs["last_token_C"]),
            "tokens": int(inputs["predicted_N"].sum()),
        }
        return result.loss

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
        seconds, self.last = time.monotonic() - self.last, time.monotonic()
        rate = self.trainer.watched["tokens"] / seconds
        self.advance(1, f"KL {self.trainer.watched['kl']:.1e}, {rate:,.0f} tokens/s")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_checkpoint()


def train_student(
    model: PreTrainedModel,
    stream: Callable[[int, int], BatchStream],
    boundary_ids_K: Tensor,
    objective: ObjectiveConfig,
    config: TrainConfig,
    checkpoints: Path,
    on_checkpoint: Callable[[], None],
) -> list[dict[str, float]]:
    """Train in place and return the log, one entry a step; goes on from the last whole checkpoint in `checkpoints`.

    `stream(rank, ranks)` gives a rank's batches; a checkpoint holds their position.
    """
    if not config.steps:
        return []
    last = last_checkpoint(checkpoints)
    first_step = int(last.name.rsplit("-", 1)[-1]) if last else 0
    arguments = _arguments(config, checkpoints)
    batches = stream(arguments.process_index, arguments.world_size)
    if last:
        batches.load_state_dict(_saved_position(last, arguments.process_index))
    trainer = AlmTrainer(model, arguments, batches, boundary_ids_K, objective)
    model.train()
    with track("distil", config.steps, "steps", already=first_step) as advance:
        trainer.add_callback(_Watcher(trainer, advance, on_checkpoint))
        with quiet_transformers(), matmul_precision("medium" if config.dtype == "bfloat16" else "highest"):
            if first_step < config.steps:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            else:
                trainer.load_finished(str(last))
    model.eval()
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
        lr_scheduler_type="linear",
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
