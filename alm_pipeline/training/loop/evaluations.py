"""The evaluations of a training so far, which decide the best step and when to stop.

Every checkpoint contains them, and nothing else is used to decide. So a resumed run decides as an uninterrupted one
does.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, assert_never

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from alm_pipeline.config import EvaluationConfig
from alm_pipeline.training.parallel.processes import broadcast_from_first
from storage.errors import UserError

EVALUATIONS = pa.schema(
    [
        ("step", pa.int64()),
        ("bits_per_byte", pa.float64()),
        ("word_kl", pa.float64()),
        ("alm", pa.float64()),
        ("kl", pa.float64()),
        ("bpm", pa.float64()),
        ("examples", pa.int64()),
        ("chunks", pa.int64()),
    ]
)
"""The columns of `evaluations.parquet`, one row per evaluation. Step 0 is the student before training.

`word_kl` is the divergence from the teacher per word, in nats; `alm`, `kl` and `bpm` are the metrics of
`metrics.parquet`, over held-out chunks (null: there are none, or for `bpm`, the objective does not have it).
"""
EVALUATIONS_BY_SOURCE = EVALUATIONS.insert(1, pa.field("source", pa.string()))
"""The columns of `evaluations_by_source.parquet`, one row per evaluation and source of a mixture."""
BY_SOURCE = "by_source"
SAMPLES = pa.schema(
    [("step", pa.int64()), ("sample", pa.int64()), ("prompt", pa.string()), ("continuation", pa.string())]
)
"""The columns of `samples.parquet`, one row per continuation of each evaluation; `sample` numbers the prompts."""
OVER_ALL = ("bits_per_byte", "word_kl")
"""the metrics that are measured on all held-out examples before and after training"""
_FILE = "evaluations.json"
_log = logging.getLogger("alm_pipeline")


@dataclass(frozen=True)
class Sample:
    """A student's continuation of the beginning of a held-out example."""

    prompt: str
    continuation: str


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation."""

    metrics: dict[str, float]
    """by column of `evaluations.parquet`; of a mixture, means over its sources"""
    samples: list[Sample]
    by_source: dict[str, dict[str, float]] = field(default_factory=dict)
    """the same metrics of each source of a mixture"""


class StudentEvaluator(Protocol):
    """Evaluates a student on held-out examples. `training.student.evaluator` implements it."""

    def __call__(self, model: PreTrainedModel, title: str | None = None) -> Evaluation:
        """Evaluate the student. Progress is shown under `title`, or not at all without one."""
        ...

    def over_all(self, model: PreTrainedModel, drawn: Evaluation, title: str) -> Evaluation:
        """Return OVER_ALL over all held-out examples. `drawn` is the model's evaluation on the drawn ones."""
        ...


class Evaluations:
    """The rows of `evaluations.parquet`, with their samples."""

    def __init__(self, evaluator: StudentEvaluator | None, config: EvaluationConfig) -> None:
        """Only the first process has an evaluator. It sends the results to the others."""
        self.evaluator, self.config = evaluator, config
        self.rows: list[dict[str, Any]] = []
        self.before: dict[str, float] = {}
        """OVER_ALL over all held-out examples, of the student before training"""
        self.before_by_source: dict[str, dict[str, float]] = {}
        """the same of each source of a mixture"""

    def begin(self, model: PreTrainedModel) -> None:
        """Evaluate the student before training. Raises UserError if the metric that chooses the best is missing."""
        evaluation = self._evaluate(model, 0, "evaluate before")
        if self.config.identity() and self.config.metric not in evaluation.metrics:
            raise UserError(
                f"evaluation.metric: {self.config.metric} needs held-out examples with chunks, and there are none: "
                "raise corpus.held_out, or use bits_per_byte"
            )
        if self.evaluator:
            before = self.evaluator.over_all(model, evaluation, "evaluate before")
            self.before, self.before_by_source = before.metrics, before.by_source

    def run(self, model: PreTrainedModel, step: int, title: str | None = None) -> dict[str, float]:
        """Evaluate the student of a step, record the result, and return its metrics.

        Raises UserError if a metric is NaN or infinite: it would be neither better nor worse than another.
        """
        return self._evaluate(model, step, title).metrics

    def _evaluate(self, model: PreTrainedModel, step: int, title: str | None) -> Evaluation:
        result = self.evaluator(model, title) if self.evaluator else None
        evaluation: Evaluation | None = broadcast_from_first(result)
        assert evaluation
        metrics = evaluation.metrics
        _check(metrics, step)
        samples = {"samples": [asdict(sample) for sample in evaluation.samples]}
        by_source = {BY_SOURCE: evaluation.by_source} if evaluation.by_source else {}
        self.rows.append({"step": step, **metrics, **samples, **by_source})
        distances = [f"{name} {metrics[name]:.4g}" for name in ("word_kl", "alm", "kl", "bpm") if name in metrics]
        _log.info(
            "step %d, held out: %s", step, ", ".join([f"{metrics['bits_per_byte']:.4f} bits per byte", *distances])
        )
        for name, of_source in evaluation.by_source.items():
            kl = f", word_kl {of_source['word_kl']:.4g}" if "word_kl" in of_source else ""
            _log.info("step %d, held out, %s: %.4f bits per byte%s", step, name, of_source["bits_per_byte"], kl)
        return evaluation

    def is_due(self, step: int, last: int) -> bool:
        return step % self.config.steps == 0 or step == last

    @property
    def best_step(self) -> int | None:
        """The trained step with the lowest metric, the earliest of several; None before the first evaluation."""
        values = [(value, step) for step, value in self._metric_by_step()]
        return min(values)[1] if values else None

    @property
    def is_best(self) -> bool:
        """Whether `evaluation.student` is best and the last evaluated student is the best so far."""
        return self.config.student == "best" and self.rows[-1]["step"] == self.best_step

    @property
    def should_stop(self) -> bool:
        """Whether the last `evaluation.patience` evaluations brought no improvement."""
        if self.config.patience is None:
            return False
        best, without_improvement = math.inf, 0
        for _, value in self._metric_by_step():
            improved = value < best - self.config.min_improvement
            without_improvement = 0 if improved else without_improvement + 1
            best = min(best, value)
        return without_improvement >= self.config.patience

    def _metric_by_step(self) -> list[tuple[int, float]]:
        return [(row["step"], row[self.config.metric]) for row in self.rows if row["step"]]

    def chosen_step(self, last: int) -> int:
        """Return the step whose weights become the student."""
        match self.config.student:
            case "last":
                return last
            case "best":
                return self.best_step or last
            case _:
                assert_never(self.config.student)

    def save(self, checkpoint: Path) -> None:
        before = {"before": self.before, "before_by_source": self.before_by_source}
        content = json.dumps({**before, "rows": self.rows}, ensure_ascii=False)
        (checkpoint / _FILE).write_text(content, encoding="utf-8")

    def load(self, checkpoint: Path) -> None:
        content = json.loads((checkpoint / _FILE).read_text(encoding="utf-8"))
        self.before, self.rows = content["before"], content["rows"]
        self.before_by_source = content.get("before_by_source", {})
        for row in self.rows:
            _check({name: value for name, value in row.items() if name not in ("samples", BY_SOURCE)}, row["step"])

    def step_needed_by(self, checkpoint: Path) -> int | None:
        """Return the best step as of a checkpoint, if the best student is to be saved; else None."""
        earlier = Evaluations(None, self.config)
        earlier.load(checkpoint)
        return earlier.best_step if self.config.student == "best" else None

    def write(self, folder: Path) -> None:
        """Write `evaluations.parquet`, `samples.parquet`, and `samples.txt` for people to read.

        Of a mixture, also `evaluations_by_source.parquet`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self.rows, EVALUATIONS), folder / "evaluations.parquet")
        by_source = [
            {"step": row["step"], "source": name, **metrics}
            for row in self.rows
            for name, metrics in row.get(BY_SOURCE, {}).items()
        ]
        if by_source:
            table = pa.Table.from_pylist(by_source, EVALUATIONS_BY_SOURCE)
            pq.write_table(table, folder / "evaluations_by_source.parquet")
        samples = [
            {"step": row["step"], "sample": number, **sample}
            for row in self.rows
            for number, sample in enumerate(row["samples"])
        ]
        if samples:
            pq.write_table(pa.Table.from_pylist(samples, SAMPLES), folder / "samples.parquet")
            (folder / "samples.txt").write_text("\n".join(map(_sample_text, self.rows)), encoding="utf-8")
        else:  # of an interrupted run that had some
            for name in ("samples.parquet", "samples.txt"):
                (folder / name).unlink(missing_ok=True)


def _check(metrics: Mapping[str, float], step: int) -> None:
    if wrong := [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]:
        raise UserError(
            f"step {step}, held out: {', '.join(wrong)}: the student computes numbers that are NaN or infinite: lower "
            "train.learning_rate, or raise objective.temperature"
        )


def _sample_text(row: dict[str, Any]) -> str:
    parts = [f"{sample['prompt']}▶{sample['continuation']}\n" for sample in row["samples"]]
    return "\n".join([f"════ step {row['step']} ════\n", *parts])
