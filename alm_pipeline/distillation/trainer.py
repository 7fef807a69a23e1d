"""Training a student on cached teacher scores: `transformers.Trainer` with the ALM objective and the cached stream."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from alm_pipeline.config import ObjectiveConfig, Term
from alm_pipeline.distillation.checkpoints import STATE, stream_file
from alm_pipeline.distillation.live_teacher import LiveTeacher
from alm_pipeline.distillation.losses import micro_batch_losses
from alm_pipeline.distillation.parameters import parameter_groups
from alm_pipeline.distillation.stream import BatchStream
from alm_pipeline.distillation.watching import StepWatch
from alm_pipeline.objective.batch_loss import Counts
from alm_pipeline.objective.weights import gradmag, last_layer, weights_at
from alm_pipeline.scoring.vocabulary import Vocabulary


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
        # a generator of its own: a loader draws a number as it begins, and a resumed run begins once more
        return DataLoader(self.stream, batch_size=None, generator=torch.Generator())

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
        file = Path(output_dir, stream_file(self.args.process_index))
        file.write_text(json.dumps(self.stream.state_dict()) + "\n", encoding="utf-8")

    def load_finished(self, checkpoint: str) -> None:
        """The weights and log of the last step's checkpoint: `train` would go one step on from there."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint, STATE)))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counted from `input_ids`, which packed rows do not have
