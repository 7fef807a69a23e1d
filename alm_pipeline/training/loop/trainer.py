"""Training a student on cached teacher scores: `transformers.Trainer` with the ALM objective and the cached stream."""

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from alm_pipeline.config import ObjectiveConfig, Term
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.objective.term_weights import gradmag, last_layer, uses_gradients, weights_at
from alm_pipeline.training.data.batch_stream import BatchStream, State
from alm_pipeline.training.loop.checkpoints import STATE, STREAM, UNFINISHED, checkpoint_name, finish_checkpoint
from alm_pipeline.training.loop.ema import Averages
from alm_pipeline.training.loop.evaluations import Evaluations
from alm_pipeline.training.loop.health import all_finite, stopped_message, went_wrong
from alm_pipeline.training.loop.step_metrics import StepWatch, Stopwatch
from alm_pipeline.training.model.execution import attending_with, calls_go_to
from alm_pipeline.training.model.live_teacher import LiveTeacher
from alm_pipeline.training.model.parameters import parameter_groups
from alm_pipeline.training.model.terms import micro_batch_losses
from alm_pipeline.training.parallel.processes import gathered_by_first, this_process, wait_for_all
from alm_pipeline.training.parallel.sharding import gather, save_whole_states, shard, stays_gathered, whole_tensor
from storage.errors import UserError


class AlmTrainer(Trainer):
    """Trains on batches of `BatchStream`.

    Several processes share a step's batches equally: of all that the stream gives, each takes those that are its turn.
    So a step is the same for any number of processes, and so is the stream's position behind it.
    """

    model: Any

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        stream: BatchStream,
        vocabulary: HeadVocabulary,
        objective: ObjectiveConfig,
        teacher: LiveTeacher | None = None,
        learning_rates: Mapping[str, float] | None = None,
        *,
        evaluations: Evaluations | None = None,
        ema: float | None = None,
        own_attention: str | None = None,
        diverged_at: float | None = None,
        sharded: bool = False,
        whole: PreTrainedModel | None = None,
    ) -> None:
        """`sharded` splits the model between the processes; `whole`, in the first, is where it is put together."""
        self.sharded, self.whole = sharded, whole
        self.own_attention, self._batches_done = own_attention, 0
        super().__init__(model=model, args=arguments, train_dataset=stream)
        self.learning_rates = learning_rates or {}
        self.evaluations, self.ema, self.diverged_at = evaluations, ema, diverged_at
        self.averages: Averages | None = None
        self._before_step: State = {}
        self.model_accepts_loss_kwargs = True  # the loss is a mean over the global batch already
        self.stream: BatchStream = stream
        self.objective: ObjectiveConfig = objective
        self.teacher: LiveTeacher | None = teacher
        self.vocabulary = vocabulary
        self.watched: dict[str, float] = {}
        self._watch = StepWatch(self.accelerator)
        self._stopwatch = Stopwatch(self.accelerator.device)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """With the rates of `learning_rates`."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            if self.sharded:
                # here the checkpoint's weights are loaded, and the optimizer's state is not there yet
                shard(trained, self.args.device, torch.bfloat16 if self.args.bf16 else torch.float32)
                trained._is_accelerate_prepared = True  # accelerate would put it into DDP
            decayed = self.get_decay_parameter_names(trained)
            groups = parameter_groups(trained, decayed, self.args.weight_decay, self.learning_rates)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = kind(groups, **settings)
            if self.sharded:
                save_whole_states(self.optimizer)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        # a generator of its own: a loader draws a number as it begins, and a resumed run begins once more
        return DataLoader(self.stream, batch_size=None, generator=torch.Generator())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """This process's micro-batches of a step, and what the losses of all are means over."""
        self._stopwatch.start()
        self._before_step, self._batches_done = self.stream.state_dict(), 0
        process = this_process()
        step = list(itertools.islice(epoch_iterator, num_batches * process.count))
        batches = step[process.rank :: process.count]
        if not batches:  # of a stream that ends
            return [], None
        counts = LossCounts.of(*batches)
        return batches, counts.on_all_devices(lambda own: self.accelerator.reduce(own.to(device), "sum"))

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The weighted terms of a micro-batch; what is watched goes to the next log entry."""
        # devices' gradients are averaged, and each one's loss is its part of the sum
        devices: int = self.accelerator.num_processes
        with calls_go_to(self.model, self._loss):
            loss: Tensor = model(inputs, num_items_in_batch)
        return loss * devices

    def _loss(self, batch: dict[str, Tensor], counts: LossCounts) -> Tensor:
        self._seed_batch()
        with self.accelerator.autocast():
            losses = micro_batch_losses(self.model, batch, self.vocabulary, self.objective, counts, self.teacher)
        weights: Mapping[Term, float | Tensor] = weights_at(self.objective, self.state.global_step)
        if uses_gradients(self.objective.balance):
            # found anew: a sharded layer's weights are whole only now
            with stays_gathered(self.model):
                weights = gradmag(losses.terms, weights, last_layer(self.model))
        self._watch.add(losses, weights, batch)
        return torch.stack([losses.terms[term] * weight for term, weight in weights.items()]).sum()

    def _seed_batch(self) -> None:
        """Dropout goes with the batch's place in the training, so that it matters not which process has it."""
        process, each = this_process(), self.args.gradient_accumulation_steps
        place = (self.state.global_step * each + self._batches_done) * process.count + process.rank
        torch.manual_seed(self.args.seed * 1_000_003 + place)
        self._batches_done += 1

    def begin_averages(self, checkpoint: Path | None) -> None:
        """Those of the checkpoint, whose weights the model has by now."""
        if self.ema:
            self.averages = Averages(self.model, self.ema)
            if checkpoint:
                self.averages.load(checkpoint)

    def finish_step(self) -> None:
        """Gather what was watched. It waits for the device, so the step's time is that of all its work."""
        watched = self._watch.told()
        self.watched = watched | self._stopwatch.told(watched["tokens"])
        if self.averages:
            self.averages.update(self.state.global_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Raises UserError where the step went wrong: before it is evaluated, or saved."""
        if "loss" in logs and (wrong := went_wrong(logs, self.state.log_history, self.diverged_at)):
            batches = self.args.gradient_accumulation_steps * this_process().count
            examples = self.stream.example_ids(self._before_step, batches)
            raise UserError(stopped_message(self.state.global_step, wrong, examples))
        super().log({**logs, **self.watched} if "loss" in logs else logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return whole_tensor(super()._get_grad_norm(model, grad_norm))  # type: ignore[no-untyped-call]

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not self.sharded:  # its parts go there one by one
            super()._move_model_to_device(model, device)

    def put_together(self) -> None:
        """Copy a sharded model's weights into `whole`; all processes have to call it."""
        if self.sharded:
            gather(self.model, self.whole)

    @contextmanager
    def whole_student(self) -> Iterator[None]:
        """`self.model` is whole in the first process while inside, and on the processor; all have to enter."""
        if not self.sharded:
            yield
            return
        self.put_together()
        trained = self.model
        self.model = self.whole or trained
        try:
            yield
        finally:
            self.model = trained

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self.whole_student():
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """In the names and shapes that the model has here: `_load_from_checkpoint` reads no others."""
        if self.args.should_save:  # the others, of a sharded student, have only their parts
            self.model.save_pretrained(output_dir, state_dict=state_dict, save_original_format=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = set(load_result.missing_keys) - set(self.model.all_tied_weights_keys)
        if other := sorted(missing | set(load_result.unexpected_keys)):
            raise UserError(f"the checkpoint is not of this student, by {other[0]}: delete checkpoints/ to start again")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharded and self.optimizer and not self.args.should_save:
            self.optimizer.state_dict()  # for the first, which asks all for their parts
        super()._save_optimizer_and_scheduler(output_dir)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Evaluate the averages, or where there are none the weights; a better student is saved, the last one too."""
        assert self.evaluations
        with (
            self.averages.in_place() if self.averages else nullcontext(),
            self.whole_student(),
            attending_with(self.model, self.own_attention),  # flash attention takes no float32
        ):
            if self.whole:
                self.whole.to(self.args.device)  # type: ignore[arg-type]  # torch.nn.Module.to takes a device
            scores = self.evaluations.run(self.model, self.state.global_step)
            if self.whole:
                self.whole.cpu()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop |= self.evaluations.says_stop
        self.control.should_save |= self.evaluations.is_best or self.evaluations.says_stop
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial), UNFINISHED))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Whole, or not at all. Raises UserError instead of saving what is no number."""
        if not all_finite(self.model):
            raise UserError(
                f"step {self.state.global_step}: weights are infinite or no numbers, so they are not saved: "
                "lower train.learning_rate"
            )
        folder = Path(self._get_output_dir(trial), checkpoint_name(self.state.global_step))
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            if self.evaluations:
                self.evaluations.save(folder)
        if self.averages:
            self.averages.save(folder)
        super()._save_checkpoint(model, trial)
        wait_for_all()
        if self.args.should_save:
            finish_checkpoint(folder, folder.parent.parent)
        wait_for_all()

    def _save_rng_state(self, output_dir: str) -> None:
        """The first process writes all processes' random states, and the stream's position beside them.

        So they are there before what marks the checkpoint whole, and on the machine that uploads it.
        """
        with tempfile.TemporaryDirectory() as folder:
            super()._save_rng_state(folder)
            own = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        own[STREAM] = (json.dumps(self.stream.state_dict()) + "\n").encode()
        for files in gathered_by_first(own):
            for name, content in files.items():
                Path(output_dir, name).write_bytes(content)

    def load_finished(self, checkpoint: Path) -> None:
        """The log of the last step's checkpoint: `train` would go one step on from there."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))

    def settle(self, checkpoint: Path | None) -> None:
        """Give the first process's model the weights that become the student: a checkpoint's, or the last step's."""
        if checkpoint is None:
            if self.averages:
                self.averages.swap()
            self.put_together()
        elif this_process().is_first:
            student = self.whole or self.model
            self._load_from_checkpoint(str(checkpoint), student)
            if self.ema:
                averages = Averages(student, self.ema)
                averages.load(checkpoint)
                averages.swap()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counted from `input_ids`, which packed rows do not have
