"""A student's training from the first or the last checkpointed step to the end."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.models.files import quiet_transformers
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.runtime.progress import Advance, track
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.loop.checkpoints import checkpoint_name, last_checkpoint, saved_position, step_of
from alm_pipeline.training.loop.evaluations import Evaluations
from alm_pipeline.training.loop.step_metrics import StepNote
from alm_pipeline.training.loop.trackers import RunLog
from alm_pipeline.training.loop.trainer import AlmTrainer
from alm_pipeline.training.model.adapters import attach_adapters
from alm_pipeline.training.model.execution import attending_with, computing_as
from alm_pipeline.training.model.isolation import check_isolation
from alm_pipeline.training.model.live_teacher import LiveTeacher
from alm_pipeline.training.model.parameters import freeze
from alm_pipeline.training.model.projections import attach_projections, detach_projections
from alm_pipeline.training.model.terms import make_projections
from alm_pipeline.training.parallel.processes import batches_each, this_process, told_by_first


class _Watcher(TrainerCallback):
    """Shows progress, and tells when a checkpoint is finished."""

    def __init__(self, trainer: AlmTrainer, advance: Advance, on_checkpoint: Callable[[], None]) -> None:
        self.trainer, self.advance, self.on_checkpoint = trainer, advance, on_checkpoint
        self.note = StepNote()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.finish_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.advance(1, self.note.of(logs))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_checkpoint()


class _Milestones(TrainerCallback):
    """Begins the averages, and asks for evaluations when they are due."""

    def __init__(self, trainer: AlmTrainer, last: Path | None) -> None:
        self.trainer, self.last = trainer, last

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.begin_averages(self.last)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        evaluations = self.trainer.evaluations
        control.should_evaluate = bool(evaluations and evaluations.is_due(state.global_step, args.max_steps))


def train_student(
    model: PreTrainedModel,
    stream: Callable[[], BatchStream],
    vocabulary: HeadVocabulary,
    objective: ObjectiveConfig,
    config: TrainConfig,
    checkpoints: Path,
    on_checkpoint: Callable[[], None],
    teacher: LiveTeacher | None = None,
    evaluations: Evaluations | None = None,
    run_log: RunLog | None = None,
) -> list[dict[str, float]]:
    """Train in place and return the log, one entry a step; goes on from the last whole checkpoint in `checkpoints`.

    `stream` gives the batches; a checkpoint holds their position. `teacher` is there where a term of the objective
    needs it, `evaluations` where the student is to be evaluated; `run_log` has the trackers that the metrics go to,
    besides what is returned. Several processes call it together, each with the
    same; `on_checkpoint` is the first one's, whose model is the one that is trained in place: the others' are of no use
    afterwards. Raises UserError where a loss or gradient is infinite, no number, or above `config.diverged_at`.
    """
    last = _agreed_checkpoint(checkpoints)
    if evaluations:
        evaluations.load(last) if last else evaluations.begin(model)
    if not config.steps:
        return []
    if config.row_tokens > 1:
        _check_isolation(model, config, teacher)
    batches = stream()
    if last:
        batches.load_state_dict(saved_position(last))
    given = {"stream": batches, "vocabulary": vocabulary, "objective": objective, "teacher": teacher}
    watching: dict[str, Any] = {"evaluations": evaluations, "ema": config.ema, "diverged_at": config.diverged_at}
    watching["own_attention"] = model.config._attn_implementation
    rates = {"learning_rates": config.learning_rates}
    with (
        _with_parts(model, objective, config, teacher),
        _trainer(model, config, checkpoints, **given, **watching, **rates) as trainer,
        run_log.attached(trainer, step_of(last) if last else 0) if run_log else contextlib.nullcontext(),
    ):
        _train(trainer, checkpoints, last, on_checkpoint if this_process().is_first else lambda: None)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@contextmanager
def _with_parts(
    model: PreTrainedModel, objective: ObjectiveConfig, config: TrainConfig, teacher: LiveTeacher | None
) -> Iterator[None]:
    """With the adapters and projections that it is trained with; at the end adapters are merged, projections gone."""
    adapters = attach_adapters(model, config.lora, config.seed) if config.lora else None
    if teacher:
        attach_projections(model, make_projections(teacher.model, model, objective, config.seed))
    freeze(model, config.freeze)
    yield
    # its forward pass has accelerate's autocast around it until then
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    model.eval()
    detach_projections(model)
    if adapters and this_process().is_first:  # only there the student is whole
        adapters.merge_and_unload()


def _agreed_checkpoint(checkpoints: Path) -> Path | None:
    """The first process's last one, in this one's folder."""
    last = last_checkpoint(checkpoints) if this_process().is_first else None
    name = told_by_first(last.name if last else None)
    return checkpoints / name if name else None


def _check_isolation(model: PreTrainedModel, config: TrainConfig, teacher: LiveTeacher | None) -> None:
    """Of both models' packed rows, with the attentions that they are trained with."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    with attending_with(model, config.attention):
        check_isolation(model, dtype)
    if teacher:
        check_isolation(teacher.model, dtype)


@contextmanager
def _trainer(model: PreTrainedModel, config: TrainConfig, checkpoints: Path, **given: Any) -> Iterator[AlmTrainer]:
    """At the end the model is whole in the first process, on its device."""
    arguments = _arguments(config, checkpoints)
    if config.sharding == "none" or this_process().count == 1:
        with computing_as(model, config):
            yield AlmTrainer(model, arguments, **given)
        return
    device, whole = model.device, model.cpu() if this_process().is_first else None
    trained = copy.deepcopy(model) if whole else model.cpu()
    with computing_as(trained, config):
        yield AlmTrainer(trained, arguments, sharded=True, whole=whole, **given)
    if whole:
        whole.to(device)  # type: ignore[arg-type]  # torch.nn.Module.to takes a device


def _train(trainer: AlmTrainer, checkpoints: Path, last: Path | None, on_checkpoint: Callable[[], None]) -> None:
    """From a checkpoint on, to the weights that become the student."""
    trainer.model.train()
    already = step_of(last) if last else 0
    with track("train", trainer.args.max_steps, "steps", already=already) as advance:
        trainer.add_callback(_Watcher(trainer, advance, on_checkpoint))
        trainer.add_callback(_Milestones(trainer, last))
        with quiet_transformers(), matmul_precision("medium" if trainer.args.bf16 else "highest"):
            _train_to_the_end(trainer, checkpoints, last)


def _train_to_the_end(trainer: AlmTrainer, checkpoints: Path, last: Path | None) -> None:
    evaluations = trainer.evaluations
    stopped = bool(evaluations and evaluations.says_stop)
    if last and (stopped or step_of(last) == trainer.args.max_steps):
        trainer.load_finished(last)
        weights_of = None
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        weights_of = trainer.state.global_step
    step = trainer.state.global_step
    chosen = evaluations.chosen_step(step) if evaluations else step
    trainer.settle(None if chosen == weights_of else checkpoints / checkpoint_name(chosen))


def _arguments(config: TrainConfig, checkpoints: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=config.max_grad_norm,
        gradient_accumulation_steps=batches_each(config),
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
        ignore_data_skip=True,  # the stream itself starts at the checkpoint's position
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        ddp_find_unused_parameters=True,  # some terms leave the head or the last norm out
    )
    # with several GPUs in sight, the trainer would copy the model to all of them in this one process
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _schedule_settings(config: TrainConfig) -> dict[str, Any]:
    if config.schedule != "wsd":
        return {}
    steps = config.decay_steps or max(1, min(config.steps // 10, config.steps - config.warmup_steps))
    return {"num_decay_steps": steps, "decay_type": "linear"}
