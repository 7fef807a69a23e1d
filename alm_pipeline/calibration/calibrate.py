"""Calibration of models side by side, or of the points between a base model and its tuned child.

questions → choice scores, or places → next bytes, one dataset for each model or λ → report. What is scored already is
not scored again, and a run that was killed continues with the λ, and the shard, that it was at.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import assert_never

from alm_pipeline.calibration.next_byte_stage import NextByteScoring, PredictedPlaces
from alm_pipeline.calibration.places import draw_places, places_dataset, store_places
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
    require_clusters,
)
from alm_pipeline.calibration.report.settings import QuestionColumns, ReportSettings, Sweep
from alm_pipeline.calibration.scored_models import (
    EnsembleOfModels,
    MergePoint,
    ModelsInTurn,
    ScoredModel,
    SingleModel,
    model_named,
)
from alm_pipeline.calibration.stage import ChoiceScoring, EncodedShards, ScoredQuestions
from alm_pipeline.calibration.task_questions import task_questions
from alm_pipeline.config import Dtype
from alm_pipeline.config.fields.repeated import refuse_repeated
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.ensemble.config import ensemble_or_model, refuse_settings_of_ensembles
from alm_pipeline.ensemble.loading import local_name
from alm_pipeline.merging.parents import check_rule, open_parents
from alm_pipeline.merging.rule import SPARSE_METHODS, MergeMethod, MergeRule
from alm_pipeline.models.loading import require_device
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

    def __post_init__(self) -> None:
        """Raises UserError for settings of files with a task, or of tasks with files."""
        if self._is_of_files:
            of_tasks = {"task_folder": (self.task_folder, None), "few_shot": (self.few_shot, None)}
            refuse_unread(f"{one_line(self.name)} is a file of questions, and no task", **of_tasks)
        else:
            of_files = _given(self.columns, *vars(self.columns))
            refuse_unread(f"{one_line(self.name)} is a task of lm_eval, which has no columns", **of_files)

    @property
    def _is_of_files(self) -> bool:
        return "/" in self.name or "*" in self.name or self.name.endswith(_FILE_ENDINGS)

    def read(self) -> Questions:
        """Read them. Raises UserError as `read_questions` and `task_questions` do."""
        if self._is_of_files:
            found = read_questions(self.name, self.columns)
            return found._replace(questions=found.questions[: self.limit])
        return task_questions(self.name, self.task_folder, few_shot=self.few_shot, limit=self.limit)


def sweep_rules(sweep: Sweep, method: MergeMethod) -> list[MergeRule]:
    """Return the rule of each point that is not one of the parents, in the order of λ. Warns of far weights."""
    rules = [MergeRule(method, weight, sweep.density, sweep.seed) for weight in sorted(set(sweep.weights))]
    for rule in rules:
        check_rule(rule)
    return [rule for rule in rules if not _is_parent(rule)]


def _is_parent(rule: MergeRule) -> bool:
    return rule.weight == 0 or (rule.weight == 1 and (rule.method not in SPARSE_METHODS or rule.density == 1))


ListedModel = tuple[str, Role, float | None, ScoredModel]
"""a model's name, role and weight in the report"""


@dataclass(frozen=True)
class ComparedModels:
    """Models side by side, or with a sweep the points between the two that are named."""

    names: tuple[str, ...]
    """folders, stored students' URLs, hub names, `demo:NAME`, or ensembles' files"""
    sweep: Sweep | None = None
    dtype: Dtype = "float32"
    device: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raises UserError if a sweep has other than two models, one is named twice, or nothing reads a setting."""
        if self.sweep and len(self.names) != _PARENTS:
            raise UserError(f"--weights: name a base model and its tuned child, not {len(self.names)} models")
        refuse_repeated(map(ensemble_or_model, self.names))
        refuse_settings_of_ensembles(
            self.names, dtype=self.dtype, device=self.device, trust_remote_code=self.trust_remote_code
        )

    def listed(self) -> list[ListedModel]:
        """Return the models in the order in which they are loaded. Raises UserError if parents do not fit."""
        if not self.sweep:
            return [(name, "model", None, model_named(name, self.trust_remote_code)) for name in self.names]
        if self.sweep.method == "ensemble":
            return self._ensembles(self.sweep.weights)
        base, tuned = (ModelReference(local_name(name), self.trust_remote_code) for name in self.names)
        rules = sweep_rules(self.sweep, self.sweep.method)
        with open_parents(base, tuned, tuned):
            pass  # raises what does not fit before anything is scored
        # one tokenizer for all points, as a merged folder has the child's
        parents: list[ListedModel] = [
            ("base", "base", 0.0, SingleModel(base, tuned.tokenizer)),
            ("tuned", "tuned", 1.0, SingleModel(tuned, tuned.tokenizer)),
        ]
        return parents + [(str(rule), "merge", rule.weight, MergePoint(base, tuned, rule)) for rule in rules]

    def _ensembles(self, weights: Sequence[float]) -> list[ListedModel]:
        """Return both models, each with its own tokenizer, and the ensembles between them."""
        if outside := [weight for weight in weights if not 0 <= weight <= 1]:
            raise UserError(f"weight {outside[0]:g}: an ensemble's is from 0 (the first model) to 1 (the second)")
        roles: tuple[Role, Role] = ("base", "tuned")
        parents: list[ListedModel] = [
            (role, role, float(number), SingleModel.named(name, self.trust_remote_code))
            for number, (role, name) in enumerate(zip(roles, self.names, strict=True))
        ]
        settings = {"dtype": self.dtype, "device": self.device, "trust_remote_code": self.trust_remote_code}
        between = (
            EnsembleOfModels.between(self.names, weight, **settings)
            for weight in sorted(set(weights))
            if 0 < weight < 1
        )
        return parents + [(f"ensemble, weight {each.weight:g}", "merge", each.weight, each) for each in between]

    def in_turn(self) -> ModelsInTurn:
        """Return what loads the models, one after the other."""
        return ModelsInTurn(self.dtype, self.device)

    @property
    def title(self) -> str:
        """What is compared, for pictures."""
        if not self.sweep:
            return "models side by side"
        return f"{Path(self.names[0]).name} to {Path(self.names[1]).name}, {self.sweep.method}"


@dataclass(frozen=True)
class Scored:
    """A model to score, and what it is in the report."""

    name: str
    role: Role
    weight: float | None
    scoring: ChoiceScoring | NextByteScoring


class Calibration(ABC):
    """The scoring of all models, one after the other, and the report; each part can be run alone, and resumes."""

    models: ComparedModels

    @property
    @abstractmethod
    def scored(self) -> Sequence[Scored]:
        """The models and points, in the order in which they are scored."""

    def require_ready(self) -> None:
        """Raise UserError for what would stop the report: before anything is scored, and not after."""
        require_device(self.models.device)
        _ = self.scored  # first: what does not fit is refused before anything is stored
        asked, column = self._asked
        names = {
            name
            for shard in range(len(asked.complete_manifest().shards))
            for name in asked.read_shard(shard, [column])[column].to_pylist()
        }
        require_clusters(len(names), f"in {asked.label}")

    @property
    @abstractmethod
    def _asked(self) -> tuple[Dataset, str]:
        """What models are asked, and the column that names the clusters."""

    def run(self) -> None:
        """Score everything that is not scored yet."""
        self.require_ready()
        with self.models.in_turn() as models:
            for scored in self.scored:
                self.run_one(scored, models)

    def run_one(self, scored: Scored, models: ModelsInTurn) -> None:
        """Score with one model, unless that is done."""
        match scored.scoring:
            case ChoiceScoring() as scoring:
                scoring.run(lambda: models.scorer(scoring.model))
            case NextByteScoring() as scoring:
                scoring.run(lambda: models.model(scoring.model))
            case _:
                assert_never(scored.scoring)

    def report(self, settings: ReportSettings | None = None) -> CalibrationReport:
        """Return the report of what is scored. Raises UserError if something is not."""
        found, left_out = self._found([each.scoring.scores for each in self.scored])
        points = [
            Point(scored.name, scored.role, scored.weight, scores)
            for scored, scores in zip(self.scored, found.scores, strict=True)
        ]
        return make_report(points, found.clusters, left_out, settings)

    @abstractmethod
    def _found(self, scores: Sequence[Dataset]) -> tuple[ScoredQuestions | PredictedPlaces, Mapping[str, int]]:
        """Return what all models could score, and the counts of what is left out, by reason."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the report is of, for pictures."""


class QuestionCalibration(Calibration):
    """The scoring of questions."""

    def __init__(self, models: ComparedModels, source: QuestionSource, root: str) -> None:
        """`root` is where questions and scores are stored."""
        self.models, self.source, self._root = models, source, root

    @cached_property
    def questions(self) -> Dataset:
        """The stored questions."""
        found = self.source.read()
        for reason, count in found.dropped.items():
            logger.warning("%s: %d left out: %s", one_line(self.source.name), count, reason)
        dataset = questions_dataset(self._root, self.source.name, found.questions)
        store_questions(dataset, found)
        return dataset

    @property
    def _asked(self) -> tuple[Dataset, str]:
        return self.questions, "cluster"

    @cached_property
    def scored(self) -> list[Scored]:
        models, encodings = self.models.listed(), dict[object, EncodedShards]()
        return [
            Scored(name, role, weight, ChoiceScoring(self.questions, model, self.models.dtype, encodings))
            for name, role, weight, model in models
        ]

    def _found(self, scores: Sequence[Dataset]) -> tuple[ScoredQuestions, Mapping[str, int]]:
        found = ScoredQuestions(self.questions, scores)
        return found, {**self.questions.complete_manifest().dropped, **found.left_out}

    @property
    def title(self) -> str:
        return f"{self.questions.label}: {self.models.title}"


@dataclass(frozen=True)
class TextSource:
    """The texts whose next bytes are predicted."""

    url: str
    text: str = "text"
    """a column, or a template of columns"""
    examples: int = 200
    places: int = 10
    """drawn of each text"""


class TextCalibration(Calibration):
    """The next bytes of texts."""

    def __init__(self, models: ComparedModels, source: TextSource, root: str, seed: int = 0) -> None:
        """`root` is where places and scores are stored; `seed` is that of the places."""
        self.models, self.source, self._root, self._seed = models, source, root, seed

    @cached_property
    def _listed(self) -> list[tuple[str, Role, float | None, SingleModel | MergePoint]]:
        listed = self.models.listed()
        if ensembles := [name for name, *_, model in listed if isinstance(model, EnsembleOfModels)]:
            raise UserError(f"{ensembles[0]}: ensembles have no next bytes: name single models, or use --questions")
        return [
            (name, role, weight, model)
            for name, role, weight, model in listed
            if not isinstance(model, EnsembleOfModels)
        ]

    @cached_property
    def places(self) -> Dataset:
        """The stored places."""
        source, tokenizers = self.source, [model.tokenizer for *_, model in self._listed]
        places = draw_places(source.url, source.text, source.examples, source.places, tokenizers, self._seed)
        dataset = places_dataset(self._root, source.url, places)
        store_places(dataset, places)
        return dataset

    @property
    def _asked(self) -> tuple[Dataset, str]:
        return self.places, "text"

    @cached_property
    def scored(self) -> list[Scored]:
        return [
            Scored(name, role, weight, NextByteScoring(self.places, model, self.models.dtype))
            for name, role, weight, model in self._listed
        ]

    def _found(self, scores: Sequence[Dataset]) -> tuple[PredictedPlaces, Mapping[str, int]]:
        found = PredictedPlaces(self.places, scores)
        return found, found.left_out

    @property
    def title(self) -> str:
        return f"next bytes: {self.models.title}"


def chosen_sources(
    questions: str | None,
    columns: QuestionColumns,
    tasks: tuple[Path | None, int | None],
    limit: int | None,
    texts: TextSource,
) -> tuple[QuestionSource | None, TextSource | None]:
    """Return the questions and the texts that options choose; without a corpus, the URL of `texts` is empty.

    `tasks` are the folder of tasks, and the number of examples in their prompts. Raises UserError for options of what
    was not chosen.
    """
    if not texts.url:
        refuse_unread("no corpus is named", **_given(texts, "text", "examples", "places"))
    if not questions:
        of_tasks = {"task_folder": (tasks[0], None), "few_shot": (tasks[1], None), "limit": (limit, None)}
        refuse_unread("no questions are named", **_given(columns, *vars(columns)), **of_tasks)
    return QuestionSource(questions, columns, *tasks, limit) if questions else None, texts if texts.url else None


def _given(settings: object, *names: str) -> dict[str, tuple[object, object]]:
    """Return values of settings, each with the default of its field."""
    return {name: (getattr(settings, name), getattr(type(settings), name)) for name in names}


def open_calibration(
    models: ComparedModels, questions: QuestionSource | None, texts: TextSource | None, root: str, seed: int = 0
) -> Calibration:
    """Return the calibration on questions or on the next bytes of texts. Raises UserError unless one is named."""
    if questions and not texts:
        return QuestionCalibration(models, questions, root)
    if texts and not questions:
        return TextCalibration(models, texts, root, seed)
    raise UserError("name either questions, or a corpus whose next bytes are to be predicted")
