"""Experiment trackers: TensorBoard, Weights & Biases, trackio and MLflow, through transformers' callbacks.

A student is one run of a tracker, however often its training is interrupted: it goes on by the student's name, or its
fingerprint. Nothing is sent anywhere unless `log.report_to` names a tracker that does so.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, get_reporting_integration_callbacks

from alm_pipeline.config import AlmConfig, LogConfig
from alm_pipeline.models.files import quiet_transformers
from storage.errors import UserError
from storage.secrets import without_secrets


@dataclass(frozen=True)
class RunLog:
    """A student's run in the trackers. `folder` is for what TensorBoard reads."""

    config: LogConfig
    student: str
    folder: Path
    settings: Mapping[str, Any]
    """hyperparameters by dotted name"""

    @property
    def name(self) -> str:
        return self.config.run_name or self.student

    def check(self) -> None:
        """Raises UserError, with the command that mends it, where a tracker's package is not installed."""
        for tracker in self.config.report_to:
            if find_spec(tracker) is None:
                raise UserError(
                    f"log.report_to: {tracker} is not installed here: pip install 'alm-pipeline[{tracker}]'"
                )

    @contextlib.contextmanager
    def attached(self, trainer: Trainer, first_step: int) -> Iterator[None]:
        """Let the trainer's first process tell the trackers, from the step after `first_step` on."""
        if not trainer.is_world_process_zero():
            yield
            return
        with _environment(self._variables()), self._runs(), quiet_transformers():
            for tracker in self.config.report_to:
                trainer.add_callback(_Tracked(self._callback(tracker, first_step), self))
            yield

    def _callback(self, tracker: str, first_step: int) -> TrainerCallback:
        if tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            # what an interrupted run told of steps that are trained again is not shown twice
            return TensorBoardCallback(SummaryWriter(str(self.folder), purge_step=first_step + 1))
        (kind,) = get_reporting_integration_callbacks([tracker])
        callback: TrainerCallback = kind()
        return callback

    def _variables(self) -> dict[str, str]:
        """How a run is found again, where the callbacks ask the environment for it."""
        found: dict[str, str] = {}
        if "wandb" in self.config.report_to:
            run = self.student.rsplit("-", 1)[-1]
            found |= {"WANDB_PROJECT": self.config.project, "WANDB_RUN_ID": run, "WANDB_RESUME": "allow"}
            found |= {"WANDB_LOG_MODEL": "false"}  # checkpoints lie in the student's folder
        if "mlflow" in self.config.report_to:
            found |= {"MLFLOW_EXPERIMENT_NAME": self.config.project}
        return found

    @contextlib.contextmanager
    def _runs(self) -> Iterator[None]:
        """What the callbacks would leave open, and would take in this process's next training, is ended here."""
        with contextlib.ExitStack() as runs:
            if "wandb" in self.config.report_to:
                import wandb

                runs.callback(wandb.finish)
            if "mlflow" in self.config.report_to:
                runs.enter_context(_mlflow_run(self.name))
            yield


def hyperparameters(config: AlmConfig) -> dict[str, Any]:
    """What decides the student, by dotted name, without passwords and signatures."""
    whole = config.model_dump(mode="json", include={"corpus", "teacher", "student", "score", "objective"})
    chosen = {"evaluation": config.evaluation.identity()} if config.evaluation.identity() else {}
    return dict(_flat({**without_secrets(whole), "train": config.train.identity(), **chosen}))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@contextlib.contextmanager
def _mlflow_run(name: str) -> Iterator[None]:
    """The run that is active, or is named in the environment, or that an earlier process began by that name, or a new
    one: the callback, which would not find the third, takes the active one."""
    import mlflow

    if mlflow.active_run():
        yield
        return
    experiment = mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    named = mlflow.search_runs(
        [experiment.experiment_id],
        filter_string=f"attributes.run_name = '{name}'",
        max_results=1,
        output_format="list",
    )
    begun = os.environ.get("MLFLOW_RUN_ID") or (named[0].info.run_id if named else None)
    with mlflow.start_run(run_id=begun, run_name=name):
        yield


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """With these variables, except where the user has set them."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class _Tracked(TrainerCallback):
    """A tracker's callback that sees the run's configuration in place of the trainer's arguments, and no checkpoint."""

    def __init__(self, callback: TrainerCallback, run: RunLog) -> None:
        self.callback, self.run = callback, run

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.callback.on_train_begin(self._seen(args), state, control, **kw)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.callback.on_log(self._seen(args), state, control, **kw)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.callback.on_train_end(self._seen(args), state, control, **kw)

    def _seen(self, args: TrainingArguments) -> Any:
        return _Arguments(args, self.run)


class _Arguments:
    """The trainer's arguments, which as values are the run's hyperparameters: no folder of this machine."""

    def __init__(self, arguments: TrainingArguments, run: RunLog) -> None:
        self._arguments = arguments
        self.run_name, self.project, self._settings = run.name, run.config.project, run.settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arguments, name)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._settings)

    def to_json_string(self) -> str:
        """Indented by four more: TensorBoard shows texts as Markdown."""
        lines = json.dumps(self.to_dict(), indent=2, ensure_ascii=False).splitlines()
        return "\n".join(f"    {line}" for line in lines)
