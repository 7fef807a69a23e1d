"""A comparison of methods: which students it has, what they are measured on, and its report.

    comparison = MethodComparison(recipe("transfer"), "alm-data", ("alm", "sft"), seeds=3)
    report = comparison.run()

The students share every cache up to the teacher's scores, and each of them is a student of the store like any other: a
finished one is not trained again, and neither is a measurement made again.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import pyarrow as pa
import pyarrow.parquet as pq

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.corpus import same_texts
from alm_pipeline.config.fields.repeated import each_once
from alm_pipeline.methods.measuring import ComparedModel, ComparedTexts
from alm_pipeline.methods.pictures import draw_measures, draw_quality
from alm_pipeline.methods.registry import ORIGINAL, TEACHER, MethodRun, Settings, method_runs
from alm_pipeline.methods.report import ComparisonReport, Training
from alm_pipeline.methods.tables import markdown_page
from alm_pipeline.methods.tasks import ComparedTasks, measure_tasks, require_tasks
from alm_pipeline.methods.units import UnitStore
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.phases import ALL_PHASES, Phase
from alm_pipeline.preflight.storage_probe import require_writable
from alm_pipeline.runtime.output_files import write_outputs
from storage.errors import UserError, naming
from storage.urls import join_url

FOLDER = "comparisons"
"""where comparisons are kept, under a storage root"""


@dataclass(frozen=True)
class MethodComparison:
    """The students of several methods and seeds, on one configuration."""

    config: AlmConfig
    root: str
    methods: Sequence[str]
    """the first one is the reference"""
    seeds: int = 3
    domains: Sequence[ComparedTexts] = ()
    """what students are measured on, beside what their own corpus holds out"""
    tasks: ComparedTasks | None = None
    variants: Mapping[str, Settings] = field(default_factory=dict)
    folder: str | None = None
    """a URL; by default the corpus's name, in the folder `comparisons` of the store"""

    def __post_init__(self) -> None:
        """Raises UserError as `method_runs` does, and if two domains have one name or the same texts."""
        whole = [self.config.corpus_name] if self._shares else []
        names = [*whole, *(texts.domain for texts in self._texts)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f"domains: {repeated[0]} is the name of two corpora: name one of them otherwise")
        if twins := same_texts(texts.corpus for texts in self.domains):
            raise UserError(f"domains: {' and '.join(twins)} are the same texts: leave one of them out")
        assert self.runs

    @property
    def url(self) -> str:
        return self.folder or join_url(self.root, FOLDER, self.config.corpus_name)

    @cached_property
    def runs(self) -> list[MethodRun]:
        return method_runs(self.config, self.methods, range(self.seeds), self.variants)

    def require_ready(self, here: Collection[Phase] = ALL_PHASES) -> None:
        """Raise UserError for what would stop a student of any method, or its measurement, before the first is trained.

        `here` is what this machine does itself; the rest is another's.
        """
        require_writable("folder", self.url)
        for texts in self.domains:
            texts.require_documents()
        if self.tasks:
            require_tasks(self.tasks)
        for run in self.runs[: len(self.methods)]:  # those of the first seed
            with naming(f"method {run.method}"):
                Pipeline(run.config, self.root).require_ready(here=here)

    def run(self) -> ComparisonReport:
        """Train what is missing, measure it, and return the report, which is also written into the folder."""
        self.require_ready()
        for run in self.runs:
            Pipeline(run.config, self.root).run()
            self.measure(run.config)
        report = self.report()
        self.write(report)
        return report

    def measure(self, config: AlmConfig) -> pa.Table:
        """Return what the finished student of a run is worth, measured first where that is missing."""
        return self._measures(ComparedModel.student(Pipeline(config, self.root)))

    def write(self, report: ComparisonReport) -> None:
        """Write the report into the comparison's folder: tables, numbers, and pictures if matplotlib is there.

        Nothing of an earlier report stays.
        """
        sink = pa.BufferOutputStream()
        pq.write_table(report.units(), sink, compression="zstd")
        files = {
            "units.parquet": sink.getvalue().to_pybytes(),
            "comparison.json": json.dumps(report.document(), indent=1, ensure_ascii=False).encode(),
            "comparison.md": markdown_page(report.document()).encode(),
        }
        pictures = {"quality.png": partial(draw_quality, report), "measures.png": partial(draw_measures, report)}
        write_outputs(self.url, files, pictures)

    def report(self) -> ComparisonReport:
        """Return the report of finished students."""
        tables: dict[str, list[pa.Table]] = {name: [] for name in self.methods}
        for run in self.runs:
            tables[run.method].append(self.measure(run.config))
        trainings = [Training.of(run, Pipeline(run.config, self.root).student.url) for run in self.runs]
        corpus = self.config.corpus_name
        return ComparisonReport.of({**tables, **self._unmade()}, trainings, self.methods[0], corpus, self._shares)

    def _unmade(self) -> Mapping[str, list[pa.Table]]:
        """Return the measures of the teacher, and of the student's model as it is: one of them, if they are one."""
        student = ComparedModel.student(Pipeline(self.runs[0].config, self.root))
        teacher = [pa.concat_tables(student.measure_teacher(texts, self._store) for texts in self._texts)]
        original = ComparedModel.original(Pipeline(self.config, self.root))
        if len(each_once([self.config.student.model, self.config.teacher, *self.config.teachers])) > 1:
            return {ORIGINAL: [self._measures(original)], TEACHER: teacher}
        tasks = [self._measures_on_tasks(original)] if self.tasks else []
        return {ORIGINAL: [pa.concat_tables([*teacher, *tasks])]}

    @cached_property
    def _texts(self) -> Sequence[ComparedTexts]:
        corpora = (part.texts for part in self.config.parts)
        return (*(ComparedTexts(corpus.name, corpus, is_trained_on=True) for corpus in corpora), *self.domains)

    @cached_property
    def _shares(self) -> Mapping[str, float]:
        """The shares of the sources, if there are several."""
        sources = self.config.sources if len(self.config.sources) > 1 else ()
        total = sum(source.weight for source in sources)
        return {source.name: source.weight / total for source in sources}

    @property
    def _store(self) -> UnitStore:
        return UnitStore(self.url)

    def _measures(self, model: ComparedModel) -> pa.Table:
        tables = [model.measure(texts, self._store) for texts in self._texts]
        return pa.concat_tables([*tables, *([self._measures_on_tasks(model)] if self.tasks else [])])

    def _measures_on_tasks(self, model: ComparedModel) -> pa.Table:
        assert self.tasks
        return measure_tasks(model.model, self.tasks, self._store, self.config.train.dtype)
