"""Measures the models of a comparison on texts, by document: bits per byte, and the distance to the teacher.

On the run's own corpus, or each of its sources, the held-out documents count, and of other corpora all of them. The
teacher scores each corpus once, and students with the same tokenizer share its tokens and alignments, in the store. Of
a mixture, each source's own teacher scores it, and the configuration's `teacher` scores other corpora.
"""

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from alm_pipeline.config import AlmConfig, CorpusConfig, ScoreConfig, StudentConfig
from alm_pipeline.corpus.files.errors import columns_set_by
from alm_pipeline.evaluation.held_out import DocumentSums, HeldOut
from alm_pipeline.methods.units import BITS, KL, UnitStore, unit_table
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.corpus_sample import read_sample
from alm_pipeline.scoring.scorer import Scorer
from storage.errors import UserError, naming
from storage.printed.counts import counts_in_words


@dataclass(frozen=True)
class ComparedTexts:
    """A corpus that models are measured on."""

    domain: str
    """its name in tables; of one that is trained on, its own"""
    corpus: CorpusConfig
    is_trained_on: bool = False
    """the run's corpus, or a source of it: only its held-out documents count"""

    def require_documents(self) -> None:
        """Read the first documents. Raises UserError, naming the domain, if they can't be read or there are none."""
        definition = f"{{domains: {{{self.domain}: {{source: {{kind: files, urls: [URL]}}, text: COLUMN}}}}}}"
        fix = f"Say which column holds the text in --definitions: {definition}"
        with naming(f"domains: {self.domain}"), columns_set_by(fix):
            sample = read_sample(self.corpus)
            for problem in sample.problems:
                raise problem
        if sample.is_whole and not sample.examples:
            reasons = counts_in_words(sample.dropped, "no row was read")
            raise UserError(f"domains: {self.domain}: has no documents ({reasons}): check its source and its columns")


@dataclass(frozen=True)
class ComparedModel:
    """A model of a comparison: a student, or one that is as its authors made it."""

    config: AlmConfig
    """the run that it is compared in"""
    root: str
    model: ModelReference
    training: Pipeline | None = None
    """the run that made it, whose caches have its tokens of the corpus that it was trained on"""

    @classmethod
    def student(cls, training: Pipeline) -> "ComparedModel":
        """Return the finished student of a run."""
        folder = str(training.student.fetch())
        return cls(training.config, training.root, ModelReference(folder, trust_remote_code=True), training)

    @classmethod
    def original(cls, training: Pipeline) -> "ComparedModel":
        """Return the model of a run's student before anything was done to it, with its own tokenizer."""
        return cls(training.config, training.root, training.source)

    def measure(self, texts: ComparedTexts, store: UnitStore) -> pa.Table:
        """Return the measures by document; what of them or their caches is missing is made first."""
        run = self._run_on(texts)
        return store.of(self._identity(run, texts, self.model.identity), lambda: self._units(run, texts))

    def measure_teacher(self, texts: ComparedTexts, store: UnitStore) -> pa.Table:
        """Return the teacher's bits per byte by document, from its scores; the texts are cut as for this model."""
        run = self._run_on(texts)
        identity = self._identity(run, texts, "teacher")
        return store.of(identity, lambda: _units(texts.domain, _held_out(run, texts), None))

    def _run_on(self, texts: ComparedTexts) -> Pipeline:
        """Return a run whose caches are those of these texts in this model's tokens. It is not used to train."""
        if texts.is_trained_on:
            return (self.training or self._untrained).part(texts.domain)
        return Pipeline(self._own_config.model_copy(update={"corpus": texts.corpus}), self.root)

    @cached_property
    def _untrained(self) -> Pipeline:
        """The run's corpus in this model's own tokens. A mixture stays one: its sources may be compared with others."""
        return Pipeline(self._own_config, self.root)

    @property
    def _own_config(self) -> AlmConfig:
        trust = self.config.trust_remote_code or self.model.trust_remote_code
        update = {"trust_remote_code": trust, "name": None, "student": StudentConfig(model=self.model.name)}
        return self.config.model_copy(update=update)

    def _identity(self, run: Pipeline, texts: ComparedTexts, model: str) -> dict[str, object]:
        caches = {role: dataset.name for role, dataset in run.caches.items()}
        everything = {} if texts.is_trained_on else {"everything": True}
        return {"kind": "texts", "domain": texts.domain, "model": model, "caches": caches, **everything}

    def _units(self, run: Pipeline, texts: ComparedTexts) -> pa.Table:
        held_out = _held_out(run, texts)
        settings = ScoreConfig(dtype="float32", batch_tokens=self.config.score.batch_tokens)
        sums = held_out.student_sums(Scorer.load(self.model, settings), f"measure on {texts.domain}")
        self.model.check_unchanged()
        return _units(texts.domain, held_out, sums)


def _held_out(run: Pipeline, texts: ComparedTexts) -> HeldOut:
    (run.mixture or run).cache()
    return HeldOut.read(run.caches, everything=not texts.is_trained_on)


def _units(domain: str, held_out: HeldOut, sums: DocumentSums | None) -> pa.Table:
    """Return the measures of a model by document; without `sums`, those of the teacher."""
    of = sums or held_out.teacher_sums
    columns = {BITS: (of.bits, of.bytes)} | ({} if of.kl is None or of.words is None else {KL: (of.kl, of.words)})
    return pa.concat_tables(
        unit_table(domain, measure, dict(zip(held_out.document_names, zip(*pair, strict=True), strict=True)))
        for measure, pair in columns.items()
    )
