"""Measures the models of a comparison on tasks of lm_eval, by question."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from alm_pipeline.ensemble.tasks import lm_eval_harness, task_files
from alm_pipeline.methods.units import UNITS, UnitStore, unit_table
from alm_pipeline.models.reference import ModelReference
from storage.errors import naming


class ComparedTasks(NamedTuple):
    """The tasks, as `alm evaluate` takes them."""

    names: tuple[str, ...]
    folder: Path | None = None
    few_shot: int | None = None
    limit: int | None = None
    chat: bool = False

    def identity(self) -> dict[str, Any]:
        """Return what decides the results, beside the model."""
        return {**self._asdict(), "folder": task_files(self.folder), "lm_eval": version("lm_eval")}


def require_tasks(tasks: ComparedTasks) -> None:
    """Raise UserError if lm_eval is missing, or does not have one of the tasks or its data."""
    with naming("tasks"):
        lm_eval_harness().check_tasks(tasks.names, tasks.folder)


def measure_tasks(model: ModelReference, tasks: ComparedTasks, store: UnitStore, dtype: str) -> pa.Table:
    """Return each task's metrics by question. Raises UserError if lm_eval is missing, or can't run a task."""
    harness = lm_eval_harness()
    identity = {"kind": "tasks", "model": model.identity, "dtype": dtype, **tasks.identity()}

    def measure() -> pa.Table:
        results = harness.evaluate(
            [model.name],
            tasks.names,
            task_folder=tasks.folder,
            few_shot=tasks.few_shot,
            limit=tasks.limit,
            chat=tasks.chat,
            dtype=dtype,
            trust_remote_code=model.trust_remote_code,
            samples=True,
        )
        units = question_units(next(results)["samples"])
        model.check_unchanged()
        return units

    return store.of(identity, measure)


def question_units(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> pa.Table:
    """Return the metrics of lm_eval's samples by question: those that are one number each, whose mean is reported.

    A task with several filters has each metric once for each, as `exact_match,strict-match`.
    """
    tables = [_of_task(task, of_task) for task, of_task in samples.items()]
    return pa.concat_tables(tables) if tables else UNITS.empty_table()


def _of_task(task: str, samples: Sequence[Mapping[str, Any]]) -> pa.Table:
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for sample in samples:
        filter_ = sample.get("filter", "none")
        for metric in sample["metrics"]:
            if isinstance(value := sample[metric], int | float | np.number | np.bool_):
                name = metric if filter_ == "none" else f"{metric},{filter_}"
                found.setdefault(name, {})[str(sample["doc_id"])] = float(value), 1.0
    tables = [unit_table(task, metric, units) for metric, units in found.items()]
    return pa.concat_tables(tables) if tables else UNITS.empty_table()
