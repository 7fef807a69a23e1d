"""On-policy rounds: the student writes, the teacher scores what it wrote, the student is trained on it, and so on.

    rounds = OnPolicy(config, "alm-data")
    rounds.run()

A round is made of the stages of any run. What the student wrote is a dataset of examples, and the rest of the round is
the pipeline of a configuration whose corpus is that dataset (and the run's own corpus, as `rounds.mix` says) and whose
student's model is the student of the round before. So every part has a name, is kept and can be looked into, and what
was interrupted goes on.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from alm_pipeline.config import (
    AlmConfig,
    Corpus,
    CorpusConfig,
    RoundsConfig,
    SourceConfig,
    StudentConfig,
    TrainConfig,
    WrittenSource,
    parse_config,
)
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.ensemble.tasks import lm_eval_harness, task_files
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.phases import ALL_PHASES, Phase
from alm_pipeline.provenance import provenance
from alm_pipeline.rollouts.local_writer import LocalWriter
from alm_pipeline.rollouts.prompts import PromptChoice, choose, read_rows
from alm_pipeline.rollouts.stage import rollouts_dataset, write_rollouts
from alm_pipeline.rollouts.vllm_writer import model_writer, require_engine, require_room
from alm_pipeline.rounds.measures import measure_student, tasks_of
from alm_pipeline.rounds.report import RoundsReport, write_report_files
from alm_pipeline.student_report.page import write_run_report
from storage.dataset import Dataset, Manifest
from storage.errors import UserError, naming
from storage.folders import FolderManifest, StoredFolder, make_folder
from storage.lease import Lease

STAGE_VERSION = 1


class OnPolicy:
    """The rounds of a configuration, under one storage root (any fsspec URL).

    Students are numbered: student 0 is the one before the first round, and round r makes student r of student r - 1.
    """

    def __init__(self, config: AlmConfig, root: str) -> None:
        """Raises UserError if the configuration has no rounds."""
        if config.rounds is None:
            raise UserError(
                "rounds: is not set, and says how many on-policy rounds there are: add a section `rounds`, such as "
                "rounds: {count: 3}"
            )
        self.config, self.root, self.rounds = config, root, config.rounds
        self.start = Pipeline(config.model_copy(update={"rounds": None}), root)
        """the run that makes the examples, and student 0 unless that is `student.model`"""
        self._pipelines: dict[int, Pipeline] = {}
        self._writers: dict[int, LocalWriter] = {}

    @property
    def count(self) -> int:
        return self.rounds.count

    def run(self) -> FolderManifest:
        """Run every round, and measure every student. Raises UserError as `Pipeline.run` does."""
        if manifest := self.finished():
            return manifest
        self.require_ready()
        self.prepare()
        for round_ in range(1, self.count + 1):
            self.write(round_)
            self.train(round_)
        self.write(self.count + 1)
        return self.report()

    def finished(self) -> FolderManifest | None:
        """Return the manifest of the results, if all is there; None while the start's tokenizer has yet to be made."""
        made = self.start.made_tokenizer
        return None if made and not made.manifest() else self.folder.manifest()

    def require_ready(self, here: Collection[Phase] = ALL_PHASES) -> None:
        """Raise UserError if students can't write here, be trained, or be measured on the tasks: now, not after hours.

        `here` is what this machine does itself; the rest is another's.
        """
        if not (self.rounds.steps or self.config.train.steps):
            raise UserError("rounds.steps: is not set, and train.steps is 0, so no round would train: set rounds.steps")
        if not self.rounds.tasks:
            of_tasks = {"task_folder": self.rounds.task_folder, "task_limit": self.rounds.task_limit}
            refuse_unread("rounds.tasks names none", **{f"rounds.{name}": (of_tasks[name], None) for name in of_tasks})
        require_engine(self.rounds.sampling)
        require_room(self.start.source, self.rounds.sampling)
        self._require_objective(here)
        if not self.rounds.tasks:
            return
        tasks = tasks_of(self.rounds)
        with naming("rounds.tasks"):
            lm_eval_harness().check_tasks(tasks.names, tasks.folder)

    def _require_objective(self, here: Collection[Phase]) -> None:
        """Raise UserError for what would stop a round's training and not the start's: its objective."""
        if self.rounds.objective is None:
            return
        self.start.require_ready(here=here)
        content = self.start.config.model_dump(mode="json")
        with naming("rounds.objective"):
            config = parse_config({**content, "objective": self.rounds.objective.model_dump(mode="json")})
            Pipeline(config, self.root).require_ready(here=here)

    def prepare(self) -> None:
        """Make what the first round begins with: examples and student 0."""
        if self.rounds.start == "student":
            self.start.run()
        else:
            self.start.require_ready()
            self.start.train_tokenizer()
            for part in self.start.parts:
                part.shard()

    def model(self, student: int) -> ModelReference:
        """Return a finished student's model."""
        trust = self.config.trust_remote_code
        if student:
            return ModelReference(str(self.pipeline(student).student.fetch()), trust)
        if self.rounds.start == "model":
            return self.start.source
        return ModelReference(str(self.start.student.fetch()), trust)

    def rollouts(self, round_: int) -> list[Dataset]:
        """Return what student `round_` - 1 writes on the prompts of each source; at the end, on held-out ones alone."""
        return [self._rollouts(round_, part) for part in range(len(self.start.parts))]

    def _rollouts(self, round_: int, part: int) -> Dataset:
        writer, examples = self._writer(round_), self.start.parts[part].examples
        choice = self._choice(round_, part)
        rollouts = rollouts_dataset(examples, writer, self.rounds.prompts, writer.sampling, choice)
        return replace(rollouts, provenance=provenance(self.config))

    def write(self, round_: int) -> list[Manifest]:
        """Let student `round_` - 1 write."""
        writer, prompts = self._writer(round_), self.rounds.prompts
        title = f"write, round {round_}" if round_ <= self.count else "write, at the end"
        written = [
            write_rollouts(rollouts, part.examples, writer, prompts, self._choice(round_, number), title)
            for number, (rollouts, part) in enumerate(zip(self.rollouts(round_), self.start.parts, strict=True))
        ]
        writer.release()  # it would stay in memory while the next student is trained
        return written

    def _writer(self, round_: int) -> LocalWriter:
        if round_ not in self._writers:
            self._writers[round_] = model_writer(self.model(round_ - 1), self.rounds.sampling)
        return self._writers[round_]

    def _choice(self, round_: int, part: int) -> PromptChoice:
        train = self._share(self.rounds.per_round, part) if round_ <= self.count else 0
        return PromptChoice(train, self._share(self.rounds.held_out, part), self.rounds.sampling.seed, round_)

    def _share(self, count: int, part: int) -> int:
        """Return the number of prompts that a source contributes to `count`, by its weight."""
        return max(1, round(count * self._shares[part]))

    @cached_property
    def _shares(self) -> list[float]:
        """The share of each source in the corpus."""
        weights = [source.weight for source in self.config.sources] or [1.0]
        return [weight / sum(weights) for weight in weights]

    def train(self, round_: int) -> FolderManifest:
        """Make student `round_` from what was written: tokens, alignments, scores, and the training."""
        return self.pipeline(round_).run()

    def pipeline(self, round_: int) -> Pipeline:
        """Return the stages of a round after the writing, which has to be complete."""
        if round_ not in self._pipelines:
            self._pipelines[round_] = Pipeline(self.round_config(round_), self.root)
        return self._pipelines[round_]

    def round_config(self, round_: int) -> AlmConfig:
        """Return the configuration of a round after the writing, as that of any other run."""
        rounds, train = self.rounds, self.config.train
        steps = rounds.steps or train.steps
        changes = {
            "steps": steps,
            "warmup_steps": min(train.warmup_steps, steps // 10),
            "decay_steps": train.decay_steps and min(train.decay_steps, steps - steps // 10),
            "learning_rate": rounds.learning_rate or train.learning_rate,
        }
        is_last = round_ == self.count
        return self._config_on(round_).model_copy(
            update={
                "corpus": self._corpus(round_),
                "objective": rounds.objective or self.config.objective,
                "train": TrainConfig.model_validate({**train.model_dump(), **changes}),
                "publish": self.config.publish if is_last else None,
            }
        )

    def _config_on(self, round_: int) -> AlmConfig:
        """Return the configuration whose corpus is what was written for a round, with the student that wrote it."""
        name = f"{self.config.name}, " if self.config.name else ""
        update = {
            "corpus": self._written_corpus(round_),
            "student": StudentConfig(model=self.model(round_ - 1).name),
            "name": f"{name}round {round_}",
            "rounds": None,
        }
        return self.config.model_copy(update=update)

    def _written_corpus(self, round_: int) -> Corpus:
        if self.config.is_mixture:
            return self._written_sources(round_, 1.0)
        return self._written(round_, 0)

    def _written(self, round_: int, part: int) -> CorpusConfig:
        corpus = self.start.parts[part].config.texts
        source = WrittenSource(examples=self._rollouts(round_, part).url)
        name = f"{corpus.name}-round-{round_}"
        return CorpusConfig(name=name, source=source, held_out=corpus.held_out, one_sided=corpus.one_sided)

    def _written_sources(self, round_: int, share: float) -> tuple[SourceConfig, ...]:
        """Return what was written as sources of a mixture that have this share of it together."""
        parts = range(len(self._shares))
        return tuple(self._source(self._written(round_, part), part, share * self._shares[part]) for part in parts)

    def _source(self, corpus: CorpusConfig, part: int, weight: float) -> SourceConfig:
        own = self.config.sources[part] if self.config.is_mixture else None
        teacher = {"teacher": own.teacher, "teacher_template": own.teacher_template} if own else {}
        fields = {name: getattr(corpus, name) for name in CorpusConfig.model_fields}
        return SourceConfig.model_validate({**fields, **teacher, "weight": max(1e-6, round(weight, 6))})

    def _corpus(self, round_: int) -> Corpus:
        """Return what is trained on in a round: what was written, and the run's own corpus beside it."""
        mix = self.rounds.mix
        if mix == 1:
            return self._written_corpus(round_)
        corpora = [part.config.texts for part in self.start.parts]
        others = (self._source(corpus, part, (1 - mix) * self._shares[part]) for part, corpus in enumerate(corpora))
        return (*self._written_sources(round_, mix), *others)

    @cached_property
    def folder(self) -> StoredFolder:
        """The folder of the results: the measures of all students, as tables and as a picture."""
        start = self.start.student.name if self.rounds.start == "student" else self.start.source.identity
        shares = [round(share, 6) for share in self._shares]
        identity = {
            "stage_version": STAGE_VERSION,
            "start": start,
            "sources": [[share, *_contents(part)] for share, part in zip(shares, self.start.parts, strict=True)],
            "rounds": _deciding(self.rounds),
            "train": self.config.train.identity(),
            "objective": self.config.objective.model_dump(mode="json"),
            "score": self.config.score.identity(),
        }
        label = f"{self.start.source.label}-from-{self.start.teacher.label}-on-{self.config.corpus_name}"
        return StoredFolder(self.root, "rounds", label, identity, provenance=provenance(self.config))

    def report(self) -> FolderManifest:
        """Measure every student on what it writes, and write the results."""

        def make(folder: StoredFolder, lease: Lease) -> FolderManifest:
            folder.path.mkdir(parents=True, exist_ok=True)
            report = RoundsReport.of([self.measure(student, folder) for student in range(self.count + 1)])
            write_report_files(report, folder.path, self.config)
            return folder.finish({**report.document(), **self._places()}, lease)

        is_new = self.folder.manifest() is None
        manifest = make_folder(self.folder, make)
        for url in self._students():  # their pages show the rounds, too
            write_run_report(url, is_new=is_new)
        return manifest

    def _places(self) -> Mapping[str, Any]:
        written = [[dataset.name for dataset in self.rollouts(round_)] for round_ in range(1, self.count + 2)]
        return {"students": [url.rsplit("/", 1)[-1] for url in self._students()], "rollouts": written}

    def _students(self) -> Sequence[str]:
        first = [self.start.student.url] if self.rounds.start == "student" else []
        return [*first, *(self.pipeline(round_).student.url for round_ in range(1, self.count + 1))]

    def measure(self, student: int, folder: StoredFolder) -> Any:
        """Return the measures of a student, by held-out prompt."""
        run = Pipeline(self._config_on(student + 1), self.root)
        run.cache()
        asked = [self._held_out_prompts(part) for part in range(len(self.start.parts))]
        return measure_student(run, self.model(student), self.rounds, asked, folder.url)

    def _held_out_prompts(self, part: int) -> list[str]:
        """Return the ids of the held-out examples of a source that every student writes on."""
        examples, choice = self.start.parts[part].examples, self._choice(self.count + 1, part)
        return [row["id"] for row in read_rows(examples, choose(examples, choice))]


def _contents(part: Pipeline) -> list[str]:
    return [part.examples.name, part.teacher.identity, part.teacher.tokenizer.identity]


def _deciding(rounds: RoundsConfig) -> dict[str, Any]:
    """Return what decides the results; tasks of one's own by their files, wherever their folder is."""
    files = {"task_folder": task_files(tasks_of(rounds).folder)} if rounds.tasks and rounds.task_folder else {}
    return rounds.model_dump(mode="json", exclude={"sampling"}) | {"sampling": rounds.sampling.identity()} | files
