"""Experiment trackers: TensorBoard, Weights & Biases, trackio and MLflow, through transformers' callbacks.

A student is one run of a tracker, however often its training is interrupted: the run is found again by the student's
name or fingerprint. Nothing is sent anywhere unless `log.report_to` names a tracker that sends.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, get_reporting_integration_callbacks

from alm_pipeline.config import AlmConfig, LogConfig
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.training.loop.installed import check_tracker
from storage.printed.secrets import without_secrets


@dataclass(frozen=True)
class RunLog:
    """A student's run in the trackers. TensorBoard reads `folder`."""

    config: LogConfig
    student: str
    folder: Path
    settings: Mapping[str, Any]
    """hyperparameters by dotted name"""
    chosen_name: str | None = None
    """the configuration's"""

    @property
    def name(self) -> str:
        # MLflow and trackio find a run by its name: two students that share a chosen name are two runs
        fingerprint = self.student.rsplit("-", 1)[-1]
        chosen = f"{self.chosen_name} {fingerprint}" if self.chosen_name else self.student
        return self.config.run_name or chosen

    def check(self) -> None:
        """Raise UserError, with the command that installs it, if a tracker's package is missing."""
        for tracker in self.config.report_to:
            check_tracker(tracker)

    @contextlib.contextmanager
    def attached(self, trainer: Trainer, first_step: int) -> Iterator[None]:
        """Let the trainer's first process report to the trackers, from the step after `first_step`."""
        if not trainer.is_world_process_zero():
            yield
            return
        with _environment(self._variables()), self._runs(), quiet_transformers():
            for tracker in self.config.report_to:
                trainer.add_callback(_TrackerCallback(self._callback(tracker, first_step), self))
            yield

    def _callback(self, tracker: str, first_step: int) -> TrainerCallback:
        if tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            # steps that an interrupted run reported and that are trained again are not shown twice
            return TensorBoardCallback(SummaryWriter(str(self.folder), purge_step=first_step + 1))
        (kind,) = get_reporting_integration_callbacks([tracker])
        callback: TrainerCallback = kind()
        return callback

    def _variables(self) -> dict[str, str]:
        """Return the environment variables by which the callbacks find a run again."""
        variables: dict[str, str] = {}
        if "wandb" in self.config.report_to:
            run = self.student.rsplit("-", 1)[-1]
            variables |= {"WANDB_PROJECT": self.config.project, "WANDB_RUN_ID": run, "WANDB_RESUME": "allow"}
            variables |= {"WANDB_LOG_MODEL": "false"}  # checkpoints are in the student's folder
        if "mlflow" in self.config.report_to:
            variables |= {"MLFLOW_EXPERIMENT_NAME": self.config.project}
        return variables

    @contextlib.contextmanager
    def _runs(self) -> Iterator[None]:
        """End the runs that the callbacks leave open: this process's next training would continue them."""
        with contextlib.ExitStack() as runs:
            if "wandb" in self.config.report_to:
                import wandb

                runs.callback(wandb.finish)
            if "mlflow" in self.config.report_to:
                runs.enter_context(_mlflow_run(self.name))
            yield


def hyperparameters(config: AlmConfig) -> dict[str, Any]:
    """Return the settings that decide the student, by dotted name, without passwords and signatures."""
    settings = config.model_dump(mode="json", include={"corpus", "teacher", "student", "score", "objective"})
    evaluation = {"evaluation": config.evaluation.identity()} if config.evaluation.identity() else {}
    return dict(_flatten({**without_secrets(settings), "train": config.train.identity(), **evaluation}))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@contextlib.contextmanager
def _mlflow_run(name: str) -> Iterator[None]:
    """Activate the student's run, which the callback then uses.

    It is the active run, the one named in the environment, one that an earlier process began under that name (the
    callback would not find it), or a new one.
    """
    import mlflow

    if mlflow.active_run():
        yield
        return
    experiment = mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    earlier_runs = mlflow.search_runs(
        [experiment.experiment_id],
        filter_string=f"attributes.run_name = '{name}'",
        max_results=1,
        output_format="list",
    )
    run_id = os.environ.get("MLFLOW_RUN_ID") or (earlier_runs[0].info.run_id if earlier_runs else None)
    with mlflow.start_run(run_id=run_id, run_name=name):
        yield


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set these variables inside the context, except those that the user has set."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class _TrackerCallback(TrainerCallback):
    """Passes a tracker's callback the run's configuration instead of the trainer's arguments, and no checkpoints."""

    def __init__(self, callback: TrainerCallback, run: RunLog) -> None:
        self.callback, self.run = callback, run

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.callback.on_train_begin(self._arguments(args), state, control, **kw)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.callback.on_log(self._arguments(args), state, control, **kw)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.callback.on_train_end(self._arguments(args), state, control, **kw)

    def _arguments(self, args: TrainingArguments) -> Any:
        return _TrackerArguments(args, self.run)


class _TrackerArguments:
    """The trainer's arguments, except that the values to report are the hyperparameters: no paths of this machine."""

    def __init__(self, arguments: TrainingArguments, run: RunLog) -> None:
        self._arguments = arguments
        self.run_name, self.project, self._settings = run.name, run.config.project, run.settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arguments, name)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._settings)

    def to_json_string(self) -> str:
        """Indent by four more, as a code block: TensorBoard renders texts as Markdown."""
        lines = json.dumps(self.to_dict(), indent=2, ensure_ascii=False).splitlines()
        return "\n".join(f"    {line}" for line in lines)
