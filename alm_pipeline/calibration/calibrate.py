"""Calibration of models side by side, or of the points between a base model and its tuned child.

questions → choice scores, one dataset for each model or λ → report. What is scored already is not scored again, and a
run that was killed continues with the λ, and the shard, that it was at.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from alm_pipeline.calibration.questions import (
    Questions,
    questions_dataset,
    read_questions,
    store_questions,
)
from alm_pipeline.calibration.report.points import (
    CalibrationReport,
    Point,
    Role,
    make_report,
)
from alm_pipeline.calibration.report.settings import QuestionColumns, ReportSettings, Sweep
from alm_pipeline.calibration.scored_models import MergePoint, ModelsInTurn, ScoredModel, SingleModel, model_named
from alm_pipeline.calibration.stage import ChoiceScoring, EncodedShards, ScoredQuestions
from alm_pipeline.calibration.task_questions import task_questions
from alm_pipeline.config import Dtype
from alm_pipeline.ensemble.loading import local_name
from alm_pipeline.merging.parents import check_rule, open_parents
from alm_pipeline.merging.rule import SPARSE_METHODS, MergeRule
from alm_pipeline.models.reference import ModelReference
from storage.dataset import Dataset
from storage.errors import UserError
from storage.printed.inert import one_line

_FILE_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".gz", ".zst", ".bz2", ".xz")
_PARENTS = 2

logger = logging.getLogger("alm_pipeline")


@dataclass(frozen=True)
class QuestionSource:
    """Where questions come from: files, or a task of lm_eval."""

    name: str
    """the URL of files, or the name of a task"""
    columns: QuestionColumns = field(default_factory=QuestionColumns)
    task_folder: Path | None = None
    few_shot: int | None = None
    limit: int | None = None
    """the number of questions, from the first"""

    def read(self) -> Questions:
        """Read them. Raises UserError as `read_questions` and `task_questions` do."""
        if "/" in self.name or "*" in self.name or self.name.endswith(_FILE_ENDINGS):
            found = read_questions(self.name, self.columns)
            return found._replace(questions=found.questions[: self.limit])
        return task_questions(self.name, self.task_folder, few_shot=self.few_shot, limit=self.limit)


def sweep_rules(sweep: Sweep) -> list[MergeRule]:
    """Return the rule of each point that is not one of the parents, in the order of λ. Warns of far weights."""
    rules = [MergeRule(sweep.method, weight, sweep.density, sweep.seed) for weight in sorted(set(sweep.weights))]
    for rule in rules:
        check_rule(rule)
    return [rule for rule in rules if not _is_parent(rule)]


def _is_parent(rule: MergeRule) -> bool:
    return rule.weight == 0 or (rule.weight == 1 and (rule.method not in SPARSE_METHODS or rule.density == 1))


@dataclass(frozen=True)
class Scored:
    """A model to score, and what it is in the report."""

    name: str
    role: Role
    weight: float | None
    scoring: ChoiceScoring


class Calibration:
    """The scoring of questions with all models, and the report; each part can be run alone, and resumes."""

    def __init__(
        self,
        models: Sequence[str],
        source: QuestionSource,
        root: str,
        *,
        sweep: Sweep | None = None,
        dtype: Dtype = "float32",
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Models are folders, stored students' URLs, hub names, `demo:NAME`, or ensembles' files.

        With a sweep, they are a base model and its tuned child. Raises UserError if they are not, or do not fit.
        """
        if sweep and len(models) != _PARENTS:
            raise UserError(f"--weights: name a base model and its tuned child, not {len(models)} models")
        if repeated := [name for name in models if models.count(name) > 1]:
            raise UserError(f"{repeated[0]}: is named twice")
        self.names, self.source, self._root, self._sweep = list(models), source, root, sweep
        self._dtype, self._device, self._trust = dtype, device, trust_remote_code

    @cached_property
    def questions(self) -> Dataset:
        """The stored questions."""
        found = self.source.read()
        for reason, count in found.dropped.items():
            logger.warning("%s: %d left out: %s", one_line(self.source.name), count, reason)
        dataset = questions_dataset(self._root, self.source.name, found.questions)
        store_questions(dataset, found)
        return dataset

    @cached_property
    def scored(self) -> list[Scored]:
        """The models and points, in the order in which they are scored."""
        models = self._sweep_models(self._sweep) if self._sweep else self._plain_models()
        encodings: dict[object, EncodedShards] = {}
        return [
            Scored(name, role, weight, ChoiceScoring(self.questions, model, self._dtype, encodings))
            for name, role, weight, model in models
        ]

    def _plain_models(self) -> list[tuple[str, Role, float | None, ScoredModel]]:
        return [(name, "model", None, model_named(name, self._trust)) for name in self.names]

    def _sweep_models(self, sweep: Sweep) -> list[tuple[str, Role, float | None, ScoredModel]]:
        base, tuned = (ModelReference(local_name(name), self._trust) for name in self.names)
        rules = sweep_rules(sweep)
        with open_parents(base, tuned, tuned):
            pass  # raises what does not fit before anything is scored
        # one tokenizer for all points, as a merged folder has the child's
        parents: list[tuple[str, Role, float | None, ScoredModel]] = [
            ("base", "base", 0.0, SingleModel(base, tuned.tokenizer)),
            ("tuned", "tuned", 1.0, SingleModel(tuned, tuned.tokenizer)),
        ]
        return parents + [(str(rule), "merge", rule.weight, MergePoint(base, tuned, rule)) for rule in rules]

    def run(self) -> None:
        """Score everything that is not scored yet."""
        with self.models_in_turn() as models:
            for scored in self.scored:
                self.run_one(scored, models)

    def models_in_turn(self) -> ModelsInTurn:
        """Return what loads the models, one after the other, for `run_one`."""
        return ModelsInTurn(self._dtype, self._device)

    def run_one(self, scored: Scored, models: ModelsInTurn) -> None:
        """Score the questions with one model, unless that is done."""
        scored.scoring.run(lambda: models.scorer(scored.scoring.model))

    def report(self, settings: ReportSettings | None = None) -> CalibrationReport:
        """Return the report of what is scored. Raises UserError if something is not."""
        found = ScoredQuestions(self.questions, [scored.scoring.scores for scored in self.scored])
        points = [
            Point(scored.name, scored.role, scored.weight, scores)
            for scored, scores in zip(self.scored, found.scores, strict=True)
        ]
        left_out = {**self.questions.complete_manifest().dropped, **found.left_out}
        return make_report(points, found.clusters, left_out, settings)

    @property
    def title(self) -> str:
        """What the report is of, for pictures."""
        label = self.questions.label
        if not self._sweep:
            return f"{label}: models side by side"
        return f"{label}: {Path(self.names[0]).name} to {Path(self.names[1]).name}, {self._sweep.method}"
