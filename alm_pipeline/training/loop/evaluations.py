"""A training's evaluations so far, and what follows from them: which step is the best, and when to stop.

They are a part of every checkpoint, and nothing else is remembered: a resumed run decides as the unbroken one.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from alm_pipeline.config import EvaluationConfig
from alm_pipeline.training.parallel.processes import told_by_first
from storage.errors import UserError

EVALUATIONS = pa.schema(
    [
        ("step", pa.int64()),
        ("bits_per_byte", pa.float64()),
        ("alm", pa.float64()),
        ("kl", pa.float64()),
        ("examples", pa.int64()),
        ("chunks", pa.int64()),
    ]
)
"""The columns of `evaluations.parquet`, a row an evaluation; step 0 is the student before training.

`alm` and `kl` are what `metrics.parquet` has of the training's chunks, over held-out ones (null: there are none).
"""
_FILE = "evaluations.json"
_log = logging.getLogger("alm_pipeline")


@dataclass(frozen=True)
class Sample:
    """What the student goes on with after a held-out beginning."""

    prompt: str
    continuation: str


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    scores: dict[str, float]
    """by column of `evaluations.parquet`"""
    samples: list[Sample]


class Evaluator(Protocol):
    """Evaluates a student on held-out examples; `training.student.evaluator` has the one there is."""

    def __call__(self, model: PreTrainedModel, title: str | None = None) -> Evaluation:
        """`title` is what the progress is called; none is shown without."""
        ...

    def over_all(self, model: PreTrainedModel, scores: Mapping[str, float], title: str) -> float:
        """The bits per byte over all that is held out, where `scores` are the model's over what was drawn of it."""
        ...


class Evaluations:
    """The rows of `evaluations.parquet`, with the samples."""

    def __init__(self, evaluator: Evaluator | None, config: EvaluationConfig) -> None:
        """The first process has the evaluator; what it finds, the others are told."""
        self.evaluator, self.config = evaluator, config
        self.rows: list[dict[str, Any]] = []
        self.before: float | None = None
        """bits per byte over all that is held out, of the student before training"""

    def begin(self, model: PreTrainedModel) -> None:
        """Evaluate the student before training. Raises UserError where it has no score to be chosen by."""
        scores = self.run(model, 0, "evaluate before")
        if self.config.identity() and self.config.metric not in scores:
            raise UserError(
                f"evaluation.metric: {self.config.metric}: no held-out example has a chunk to compare: "
                "raise corpus.held_out, or set it to bits_per_byte"
            )
        if self.evaluator:
            self.before = self.evaluator.over_all(model, scores, "evaluate before")

    def run(self, model: PreTrainedModel, step: int, title: str | None = None) -> dict[str, float]:
        """Evaluate the student of a step, and remember what came out; the scores."""
        found: Evaluation | None = told_by_first(self.evaluator(model, title) if self.evaluator else None)
        assert found
        scores = found.scores
        self.rows.append({"step": step, **scores, "samples": [asdict(sample) for sample in found.samples]})
        told = [f"{name} {scores[name]:.4g}" for name in ("alm", "kl") if name in scores]
        _log.info("step %d, held out: %s", step, ", ".join([f"{scores['bits_per_byte']:.4f} bits per byte", *told]))
        return scores

    def is_due(self, step: int, last: int) -> bool:
        return step % self.config.steps == 0 or step == last

    @property
    def best_step(self) -> int | None:
        """The trained step of the lowest score, the first of equals; None before there is one."""
        scores = [(score, step) for step, score in self._scores() if not math.isnan(score)]
        return min(scores)[1] if scores else None

    @property
    def is_best(self) -> bool:
        """Whether the last evaluated student is the best, and the best is asked for."""
        return self.config.student == "best" and self.rows[-1]["step"] == self.best_step

    @property
    def says_stop(self) -> bool:
        """Whether the last so many evaluations in a row brought no improvement."""
        if self.config.patience is None:
            return False
        best, without = math.inf, 0
        for _, score in self._scores():
            without = 0 if score < best - self.config.min_improvement else without + 1
            best = min(best, score) if not math.isnan(score) else best
        return without >= self.config.patience

    def _scores(self) -> list[tuple[int, float]]:
        return [(row["step"], row[self.config.metric]) for row in self.rows if row["step"]]

    def chosen_step(self, last: int) -> int:
        """The step whose weights become the student."""
        return (self.best_step or last) if self.config.student == "best" else last

    def save(self, checkpoint: Path) -> None:
        content = json.dumps({"before": self.before, "rows": self.rows}, ensure_ascii=False)
        (checkpoint / _FILE).write_text(content, encoding="utf-8")

    def load(self, checkpoint: Path) -> None:
        content = json.loads((checkpoint / _FILE).read_text(encoding="utf-8"))
        self.before, self.rows = content["before"], content["rows"]

    def write(self, folder: Path) -> None:
        """`evaluations.parquet`, and `samples.txt` for a person to read."""
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self.rows, EVALUATIONS), folder / "evaluations.parquet")
        if any(row["samples"] for row in self.rows):
            (folder / "samples.txt").write_text("\n".join(map(_sample_text, self.rows)), encoding="utf-8")


def _sample_text(row: dict[str, Any]) -> str:
    parts = [f"{sample['prompt']}▶{sample['continuation']}\n" for sample in row["samples"]]
    return "\n".join([f"════ step {row['step']} ════\n", *parts])
