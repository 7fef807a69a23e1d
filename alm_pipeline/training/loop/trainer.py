"""Training a student on cached teacher scores: `transformers.Trainer` with the ALM objective and the cached stream.

Why not a loop of our own: the Trainer's loop, optimizers, schedules, DDP, autocast and gradient clipping are used
unchanged, and its callbacks are what every experiment tracker supports. What differs fits into public hooks: arguments,
optimizer, batches, loss, logging, evaluation, saving of weights. Three private methods have no public counterpart:

- `_save_checkpoint` writes a checkpoint completely or not at all, from all processes.
- `_load_from_checkpoint` refuses the checkpoint of another student.
- `_get_grad_norm` makes a sharded student's norm one number.

`_save_rng_state` is called, and `_is_accelerate_prepared` keeps accelerate from wrapping a sharded student. The tests
compare these names and their signatures with the installed transformers, and fail if another private name is used.
pyproject.toml bounds transformers above.
"""

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
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from alm_pipeline.config import Term
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.objective.term_weights import gradmag, last_layer, uses_gradients, weights_at
from alm_pipeline.training.data.batch_stream import BatchStream, StreamState
from alm_pipeline.training.loop.arguments import AlmTrainingArguments
from alm_pipeline.training.loop.checkpoints import (
    STREAM_STATE,
    UNFINISHED,
    checkpoint_name,
    finish_checkpoint,
    load_weights,
)
from alm_pipeline.training.loop.ema import EmaWeights
from alm_pipeline.training.loop.health import diagnose_step, stop_message, weights_problem
from alm_pipeline.training.loop.step_metrics import StepMetrics, StepTimer
from alm_pipeline.training.loop.training_run import TrainingRun
from alm_pipeline.training.model.execution import replaced_forward, using_attention
from alm_pipeline.training.model.parameters import parameter_groups
from alm_pipeline.training.model.terms import micro_batch_losses
from alm_pipeline.training.parallel.processes import gather_to_first, this_process, wait_for_all
from alm_pipeline.training.parallel.sharding import (
    copy_full_weights,
    full_tensor,
    kept_gathered,
    shard_model,
    use_full_optimizer_states,
)
from storage.errors import UserError


class AlmTrainer(Trainer):
    """Trains on batches of `BatchStream`.

    Several processes share the batches of a step equally: each reads all batches of the stream and computes its share.
    So a step, and the stream's position after it, are the same for any number of processes.
    """

    model: Any

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: AlmTrainingArguments,
        run: TrainingRun,
        evaluation_attention: str | None = None,
        full_model: PreTrainedModel | None = None,
    ) -> None:
        """`model` is trained, and split between the processes if `arguments.sharded`.

        `full_model`, in the first process, then receives its full weights. Evaluations use `evaluation_attention`.
        """
        self.run, self.sharded, self.full_model = run, arguments.sharded, full_model
        self.evaluation_attention, self._batches_done = evaluation_attention, 0
        super().__init__(model=model, args=arguments, train_dataset=run.stream)
        self.ema: EmaWeights | None = None
        self.model_accepts_loss_kwargs = True  # the loss is already a mean over the global batch
        self.stream: BatchStream = run.stream
        self.step_metrics: dict[str, float] = {}
        self._state_before_step: StreamState = {}
        self._metrics = StepMetrics(self.accelerator, run.sources)
        self._timer = StepTimer(self.accelerator.device)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer with the configured learning rates, after sharding the model."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            if self.sharded:
                # now the checkpoint's weights are loaded, and the optimizer's state is not
                shard_model(trained, self.args.device, torch.bfloat16 if self.args.bf16 else torch.float32)
                trained._is_accelerate_prepared = True  # otherwise accelerate wraps it in DDP
            decayed = self.get_decay_parameter_names(trained)
            groups = parameter_groups(trained, decayed, self.args.weight_decay, self.run.config.learning_rates)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = kind(groups, **settings)
            if self.sharded:
                use_full_optimizer_states(self.optimizer)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        # with its own generator: a loader draws a number when it starts, and a resumed run starts it once more
        return DataLoader(self.stream, batch_size=None, generator=torch.Generator())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Return this process's micro-batches of a step, and the global counts that the losses are means over."""
        self._timer.start()
        self._state_before_step, self._batches_done = self.stream.state_dict(), 0
        process = this_process()
        step = list(itertools.islice(epoch_iterator, num_batches * process.count))
        batches = step[process.rank :: process.count]
        if not batches:  # the stream has ended
            return [], None
        counts = LossCounts.of(*batches)
        return batches, counts.on_all_devices(lambda values: self.accelerator.reduce(values.to(device), "sum"))

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the weighted sum of a micro-batch's terms, and record its metrics for the next log entry."""
        # each device's loss is its part of the sum, and gradients are averaged over devices
        devices: int = self.accelerator.num_processes
        with replaced_forward(self.model, self._micro_batch_loss):
            loss: Tensor = model(inputs, num_items_in_batch)
        return loss * devices

    def _micro_batch_loss(self, batch: dict[str, Tensor], counts: LossCounts) -> Tensor:
        self._seed_micro_batch()
        run = self.run
        with self.accelerator.autocast():
            losses = micro_batch_losses(self.model, batch, run.vocabulary, run.objective, counts, run.teacher)
        weights: Mapping[Term, float | Tensor] = weights_at(run.objective, self.state.global_step)
        if uses_gradients(run.objective.balance):
            # the last layer is looked up here: only now are a sharded layer's weights gathered
            with kept_gathered(self.model):
                weights = gradmag(losses.terms, weights, last_layer(self.model))
        self._metrics.add(losses, weights, batch)
        return torch.stack([losses.terms[term] * weight for term, weight in weights.items()]).sum()

    def _seed_micro_batch(self) -> None:
        """Make dropout depend on the batch's index in the training, not on the process that computes it."""
        process, batches = this_process(), self.args.gradient_accumulation_steps
        index = (self.state.global_step * batches + self._batches_done) * process.count + process.rank
        torch.manual_seed(self.args.seed * 1_000_003 + index)
        self._batches_done += 1

    def start_ema(self, checkpoint: Path | None) -> None:
        """Start the average from the current weights, or load it from the checkpoint that they come from."""
        if self.run.config.ema:
            self.ema = EmaWeights(self.model, self.run.config.ema)
            if checkpoint:
                self.ema.load(checkpoint)

    def collect_step_metrics(self) -> None:
        """Collect the step's metrics. This waits for the device, so the measured time covers all of the step's work."""
        metrics = self._metrics.collect()
        self.step_metrics = metrics | self._timer.measure(metrics["tokens"])
        if self.ema:
            self.ema.update(self.state.global_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Raises UserError if the step went wrong, before it is evaluated or saved."""
        is_step = "loss" in logs
        if is_step and (problem := self._problem(logs)):
            batches = self.args.gradient_accumulation_steps * this_process().count
            examples = self.stream.example_ids(self._state_before_step, batches)
            raise UserError(stop_message(self.state.global_step, problem, examples))
        super().log({**logs, **self.step_metrics} if is_step else logs, start_time)

    def _problem(self, logs: Mapping[str, float]) -> str:
        """Return what went wrong in the step, or "". All processes of a sharded student have to call this."""
        entry = {**logs, **self.step_metrics}
        return diagnose_step(entry, self.state.log_history, self.run.config.diverged_at) or weights_problem(self.model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return full_tensor(super()._get_grad_norm(model, grad_norm))  # type: ignore[no-untyped-call]

    def gather_weights(self) -> None:
        """Copy a sharded model's weights into `full_model`. All processes have to call this."""
        if self.sharded:
            copy_full_weights(self.model, self.full_model)

    @contextmanager
    def gathered_model(self) -> Iterator[None]:
        """Let `self.model` be the full model in the first process, on the CPU. All processes have to enter."""
        if not self.sharded:
            yield
            return
        self.gather_weights()
        trained = self.model
        self.model = self.full_model or trained
        try:
            yield
        finally:
            self.model = trained

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Evaluate the averaged weights, or the weights if there is no average.

        Asks for a checkpoint if the student is the best so far, or the last.
        """
        assert self.run.evaluations
        evaluations = self.run.evaluations
        with (
            self.ema.in_place() if self.ema else nullcontext(),
            self.gathered_model(),
            using_attention(self.model, self.evaluation_attention),  # flash attention does not accept float32
            self._full_model_on_device(),
        ):
            results = evaluations.run(self.model, self.state.global_step)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in results.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop |= evaluations.should_stop
        self.control.should_save |= evaluations.is_best or evaluations.should_stop
        return metrics

    @contextmanager
    def _full_model_on_device(self) -> Iterator[None]:
        if self.full_model:
            self.full_model.to(self.args.device)  # type: ignore[arg-type]  # torch.nn.Module.to takes a device
        yield
        if self.full_model:
            self.full_model.cpu()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights under the names and in the shapes that they have here, which `load_weights` expects."""
        with self.gathered_model():
            if self.args.should_save:  # the other processes of a sharded student have only their parts
                self.model.save_pretrained(output_dir, save_original_format=False)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a complete checkpoint or none. Raises UserError instead of saving weights that are NaN or infinite."""
        if problem := weights_problem(self.model):
            raise UserError(f"step {self.state.global_step}: {problem}: they are not saved: lower train.learning_rate")
        checkpoints = self.run.checkpoints
        folder = checkpoints / UNFINISHED / checkpoint_name(self.state.global_step)
        self._write_checkpoint(folder)
        wait_for_all()
        if self.args.should_save:
            finish_checkpoint(folder, checkpoints)
        wait_for_all()

    def _write_checkpoint(self, folder: Path) -> None:
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            if self.run.evaluations:
                self.run.evaluations.save(folder)
        if self.ema:
            self.ema.save(folder)
        self.save_model(str(folder))
        self._write_optimizer(folder)
        self._write_random_states(folder)
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _write_optimizer(self, folder: Path) -> None:
        assert self.optimizer
        assert self.lr_scheduler
        # a sharded optimizer gathers its state from all processes
        state = self.optimizer.state_dict() if self.sharded or self.args.should_save else None
        if self.args.should_save:
            torch.save(state, folder / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def _write_random_states(self, folder: Path) -> None:
        """Write all processes' random states and the stream's position, in the first process.

        So they are on the machine that uploads the checkpoint, and in its record.
        """
        with tempfile.TemporaryDirectory() as temporary:
            self._save_rng_state(temporary)
            files = {file.name: file.read_bytes() for file in Path(temporary).iterdir()}
        files[STREAM_STATE] = (json.dumps(self.stream.state_dict()) + "\n").encode()
        for process_files in gather_to_first(files):
            for name, content in process_files.items():
                (folder / name).write_bytes(content)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(Path(resume_from_checkpoint), self.model if model is None else model)

    def load_final_state(self, checkpoint: Path) -> None:
        """Load the log from the checkpoint of the last step. `train` would do one more step."""
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def load_chosen_weights(self, checkpoint: Path | None) -> None:
        """Give the first process's model the student's weights: those of a checkpoint, or of the last step (None)."""
        if checkpoint is None:
            if self.ema:
                self.ema.swap()
            self.gather_weights()
        elif this_process().is_first:
            student = self.full_model or self.model
            load_weights(checkpoint, student)
            if self.run.config.ema:
                ema = EmaWeights(student, self.run.config.ema)
                ema.load(checkpoint)
                ema.swap()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # the Trainer counts `input_ids`, which packed rows do not have
