"""The stages in order, without Prefect: the entry point for a notebook and for the flow's tasks.

    from alm_pipeline import Pipeline, recipe

    student = Pipeline(recipe("transfer"), "alm-data").run()
    print(student.results)

Every stage skips what exists and writes what is missing, so it can be called at any time after the stages before it.
`tokenize`, `align` and `score` also take `shards`, so that several processes can share the work: each shard needs only
the same shard of the stage before, and a last call without `shards` writes the manifest. Only the stages that compute
with torch import it, so that processes that tokenize and align start without it.

Where the corpus is a list of sources, `parts` has a pipeline for each of them, up to its teacher's scores: a source's
datasets are those of a run with this source alone, so that adding one makes none of the others again. Only the
student's tokenizer and the training are of all of them.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from alm_pipeline.alignment.ends import SideEdges
from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.config import BYTES, AlmConfig, CorpusConfig, TrainedTokenizer, WrittenSource
from alm_pipeline.corpus.cutting import MIN_PIECE_BYTES
from alm_pipeline.corpus.examples import DocumentFilter
from alm_pipeline.corpus.formats.dataset_objects import corpus_of_dataset
from alm_pipeline.corpus.formats.layouts import resolve_layout
from alm_pipeline.corpus.sources import open_source
from alm_pipeline.corpus.stage import examples_dataset, learns_completions, learns_marked, write_examples
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.corpus.written import written_examples
from alm_pipeline.filtering.decisions import decisions_dataset, kept_documents, write_decisions
from alm_pipeline.filtering.signatures import signatures_dataset, write_signatures
from alm_pipeline.models.configuration import refuse_other_tables
from alm_pipeline.models.loaded_files import check_same
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer, common_forms
from alm_pipeline.new_tokenizer.special_tokens import keeps_source
from alm_pipeline.new_tokenizer.stage import exchanged_folder, tokenizer_folder, write_exchanged, write_tokenizer
from alm_pipeline.objective.chunking.pair_bias_stage import pair_bias_folder, write_pair_biases
from alm_pipeline.objective.chunking.registry import CHUNKINGS
from alm_pipeline.preflight.phases import ALL_PHASES, Phase
from alm_pipeline.provenance import provenance
from alm_pipeline.runtime.memory import give_back_memory
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines.standard import single_threaded_calls
from alm_pipeline.tokenization.prepared_encoders import Encoders
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from alm_pipeline.vocabulary.token_edges import Edges, token_edges
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.folders import FolderManifest, StoredFolder
from storage.schemas import Kind
from storage.urls import absolute_url, join_url, list_folders

if TYPE_CHECKING:
    from alm_pipeline.preflight.context import RunInputs
    from alm_pipeline.preflight.findings import Finding
    from alm_pipeline.training.distillation import Distillation, DistilledPart

_SPECIAL_TOKENS = 8
"""of a context, left free around texts that are cut by bytes; most tokenizers add one or two"""

_log = logging.getLogger(__name__)
Side = Literal["teacher", "student"]
_SIDES: tuple[Side, Side] = ("teacher", "student")
Stored = TypeVar("Stored", Dataset, StoredFolder)


class Pipeline:
    """One configuration's datasets under one storage root (any fsspec URL)."""

    def __init__(
        self,
        config: AlmConfig,
        root: str,
        repaired: Dataset | None = None,
        corpus: object = None,
        mixture: "Pipeline | None" = None,
    ) -> None:
        """`repaired` is one of the datasets, which this pipeline is to write shards of again.

        `corpus` is a `datasets.Dataset` or `IterableDataset`, which replaces the configuration's source and name.
        `mixture` is the pipeline of all sources, if this one is of a part of it.
        """
        if corpus is not None and config.is_mixture:
            raise UserError("corpus: an object replaces a single corpus, and the configuration has a list of sources")
        if corpus is not None:
            config = config.model_copy(update={"corpus": corpus_of_dataset(corpus, config.texts)})
        self.config, self.root, self._repaired, self.mixture = config, root, repaired, mixture
        teacher_template = TemplateChoice.of("teacher_template", config.teacher_template)
        self.teacher = ModelReference(config.teacher, config.trust_remote_code, teacher_template)
        """the teacher by name"""
        # never the teacher's own reference: each side encodes with a tokenizer of its own, possibly at the same time
        own = ModelReference(config.student.model, config.trust_remote_code)
        self.source: ModelReference = mixture.source if mixture else own
        """the student's model before it gets its tokenizer and its template"""
        self.student_template = TemplateChoice.of("student.template", config.student.template)
        """what replaces the chat template of the student's tokenizer"""
        self._encoders = Encoders()
        self._ready: set[Phase] = set()

    @cached_property
    def parts(self) -> tuple["Pipeline", ...]:
        """The pipelines of the sources, up to the teacher's scores; this one alone, if there is a single corpus."""
        if not self.config.is_mixture:
            return (self,)
        parts = tuple(Pipeline(part, self.root, self._repaired, mixture=self) for part in self.config.parts)
        first: dict[tuple[str, str], Pipeline] = {}
        for part in parts:  # a teacher of several sources is opened and hashed once
            key = (part.config.teacher, str(part.config.teacher_template))
            part.teacher = first.setdefault(key, part).teacher
        return parts

    @property
    def name(self) -> str:
        """The name of the corpus, which is that of the source in a mixture."""
        return self.config.corpus_name

    def part(self, name: str) -> "Pipeline":
        """Return the pipeline of a source. Raises UserError if there is none of this name."""
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            raise UserError(f"source: {name} is not one of the corpus's: {', '.join(part.name for part in self.parts)}")
        return found

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        """What is recorded of the run: of a source's datasets, the configuration of that source alone makes them.

        Unless other sources decide something of it, as they do of a trained tokenizer: their list is recorded, too.
        """
        recorded = provenance(self.config)
        is_shared = isinstance(self.config.student.tokenizer, TrainedTokenizer) or self._compared_before()
        if self.mixture is None or not is_shared:
            return recorded
        return recorded | {"mixture": provenance(self.mixture.config)["configuration"]}

    def repairing(self, dataset: Dataset) -> "Pipeline":
        """Return the same pipeline, which writes shards of one of its datasets again."""
        if self.mixture:
            return Pipeline(self.mixture.config, self.root, dataset).part(self.name)
        return Pipeline(self.config, self.root, dataset)

    def _with_provenance(self, stored: Stored) -> Stored:
        """Give the dataset or folder the provenance that its manifest will record."""
        if isinstance(stored, Dataset) and self._repaired == stored:
            stored = replace(stored, rewritten=self._repaired.rewritten)
        return replace(stored, provenance=self._provenance)

    @cached_property
    def corpus(self) -> CorpusConfig:
        """The configuration's corpus, as it is read, normalized and cut for these models."""
        length = self.source.context_length
        corpus = resolve_layout(self.config.texts, open_source(self.config.texts.source))
        most = corpus.max_bytes
        if not self.cuts_by_tokens:
            most = min(corpus.byte_limit, length - _SPECIAL_TOKENS) if length else corpus.byte_limit
        return corpus.model_copy(update={"max_bytes": most, "normalize": self._forms()})

    @cached_property
    def cuts_by_tokens(self) -> bool:
        """Whether a text of as many bytes as the corpus allows may not fit the student: a token can be a single byte.

        If all fit, the examples do not depend on the student's tokenizer, and students with other tokenizers share the
        teacher's scores. The teacher scores longer examples in windows.
        """
        length, most = self.source.context_length, self.config.texts.byte_limit
        return length is not None and length - _SPECIAL_TOKENS < max(MIN_PIECE_BYTES, most - _SPECIAL_TOKENS)

    def _forms(self) -> tuple[str, ...]:
        """The forms that texts are converted to: NFC always, so that students with and without it share the caches."""
        setting = self.config.texts.normalize
        if setting != "auto":
            return setting
        # a tokenizer made by the run takes texts as they are
        tokenizers = [self.teacher.tokenizer, *([self.named_tokenizer] if self.named_tokenizer else [])]
        return common_forms(tokenizers)

    @cached_property
    def examples(self) -> Dataset:
        """The examples: the corpus, cut to fit the student. Its tokenizer may have to be made first.

        Those that a model wrote are there already. Raises UserError if they are in another storage.
        """
        if isinstance(self.config.texts.source, WrittenSource):
            return self._written_examples(self.config.texts.source)
        limit = None
        if self.cuts_by_tokens:
            limit = {"tokenizer": self.student_tokenizer.identity, "max_tokens": self.source.context_length}
        return self._with_provenance(examples_dataset(self.corpus, self.root, limit, self.decisions))

    @cached_property
    def signatures(self) -> Dataset | None:
        """What of each document is compared with others; None if none is left out for what it contains."""
        if not self.config.texts.is_filtered:
            return None
        return self._with_provenance(signatures_dataset(self.corpus, self.root))

    @cached_property
    def decisions(self) -> Dataset | None:
        """Which documents are left out, and why; None if that is not asked for."""
        if self.signatures is None:
            return None
        earlier = {part.name: signatures for part in self._compared_before() if (signatures := part.signatures)}
        return self._with_provenance(decisions_dataset(self.signatures, self.config.texts.deduplicate, earlier))

    def _compared_before(self) -> list["Pipeline"]:
        """Return the earlier sources of a mixture that this one is compared with."""
        if not (self.mixture and _is_compared(self)):
            return []
        parts = self.mixture.parts
        number = next(number for number, part in enumerate(parts) if part.name == self.name)
        return [part for part in parts[:number] if _is_compared(part)]

    def _written_examples(self, source: WrittenSource) -> Dataset:
        examples = written_examples(source)
        if examples.root != absolute_url(self.root):
            raise UserError(
                f"corpus.source.examples: {examples.url} is in another storage than this run ({self.root}): what is "
                "made of examples is stored beside them; run with that storage, or have them written in this one"
            )
        return replace(examples, root=self.root)

    @cached_property
    def made_tokenizer(self) -> StoredFolder | None:
        """The tokenizer that the run makes (trained, of bytes, or with the model's special tokens), or None."""
        if self.mixture:
            return self.mixture.made_tokenizer
        setting, source = self.config.student.tokenizer, self.source_tokenizer
        if isinstance(setting, TrainedTokenizer) or setting == BYTES:
            return self._with_provenance(tokenizer_folder(self._corpora, setting, source, self.root))
        named = self.named_tokenizer
        if setting is None or named is None:
            return None
        student = self.config.student
        exchanges = keeps_source(
            source.fast, named.fast, student.special_tokens, lacks_template=not student.template_name
        )
        return self._with_provenance(exchanged_folder(named, source, self.root)) if exchanges else None

    @property
    def _corpora(self) -> list[CorpusConfig]:
        """What a tokenizer is trained on: each source has an equal share of its text."""
        return [part.corpus for part in self.parts]

    @property
    def tokenizer_stage(self) -> str | None:
        """What makes the student's tokenizer: `train tokenizer`, `make tokenizer`, or nothing if it is there."""
        if self.made_tokenizer is None:
            return None
        return "train tokenizer" if isinstance(self.config.student.tokenizer, TrainedTokenizer) else "make tokenizer"

    @cached_property
    def source_tokenizer(self) -> LoadedTokenizer:
        """The tokenizer of the student's model, with the student's template: what a tokenizer is made of."""
        if self.mixture:
            return self.mixture.source_tokenizer
        return self.source.tokenizer.with_template(self.student_template)

    @cached_property
    def named_tokenizer(self) -> LoadedTokenizer | None:
        """The tokenizer that the configuration names for the student, with its own template; None if it is made."""
        if self.mixture:
            return self.mixture.named_tokenizer
        setting = self.config.student.tokenizer
        if setting is None or setting == self.source.name:
            return self.source.tokenizer
        return LoadedTokenizer(setting) if isinstance(setting, str) and setting != BYTES else None

    @cached_property
    def student_tokenizer(self) -> LoadedTokenizer:
        """The student's tokenizer, which may have to be made first."""
        if self.mixture:
            return self.mixture.student_tokenizer
        if self.made_tokenizer:
            return LoadedTokenizer(str(self.made_tokenizer.fetch()))
        assert self.named_tokenizer
        return self.named_tokenizer.with_template(self.student_template)

    def tokenizer(self, side: Side) -> LoadedTokenizer:
        """A side's tokenizer; the student's may have to be made first."""
        return self.teacher.tokenizer if side == "teacher" else self.student_tokenizer

    def tokens(self, side: Side) -> Dataset:
        """One side's tokens of the examples."""
        # cached, and so sent to the processes that share the work: their own tokenizer must not decide the name
        datasets: dict[Side, Dataset] = self.__dict__.setdefault("_tokens", {})
        if side not in datasets:
            tokenizer, rows = self.tokenizer(side), self._embedding_rows(side)
            tokens = tokens_dataset(self.examples, tokenizer, self._max_tokens(side), rows)
            datasets[side] = self._with_provenance(tokens)
        return datasets[side]

    def _max_tokens(self, side: Side) -> int | None:
        """The student's context length; the teacher has no limit, since it scores longer examples in windows."""
        return None if side == "teacher" else self.source.context_length

    def _embedding_rows(self, side: Side) -> int | None:
        """The rows of the embedding that reads a side's tokens; None for a new tokenizer, which gets all its rows."""
        model = self.teacher if side == "teacher" else self.source
        return model.vocabulary_rows if self.tokenizer(side).name == model.name else None

    @cached_property
    def alignments(self) -> Dataset:
        """The aligned chunks of both tokenizations."""
        sides, settings = (self.tokens("teacher"), self.tokens("student")), AlignmentSettings.of(self.config)
        return self._with_provenance(alignments_dataset(*sides, self.config.texts.name, settings))

    @cached_property
    def stored_pair_biases(self) -> StoredFolder | None:
        """The tokenization biases of the pairs of tokens at the ends of chunks; None if the chunking needs none."""
        if not CHUNKINGS[self.config.objective.chunking].needs_pair_biases:
            return None
        tokenizers = (self.tokenizer(side) for side in _SIDES)
        return self._with_provenance(pair_bias_folder(self.alignments, *tokenizers))

    @cached_property
    def scores(self) -> Dataset:
        """The teacher's scores of its tokens."""
        from alm_pipeline.scoring.stage import scores_dataset

        return self._with_provenance(scores_dataset(self.tokens("teacher"), self.teacher, self.config.score))

    @cached_property
    def caches(self) -> Mapping[str, Dataset]:
        """The datasets that a student is distilled from, by role."""
        return {
            "examples": self.examples,
            "teacher_tokens": self.tokens("teacher"),
            "student_tokens": self.tokens("student"),
            "alignments": self.alignments,
            "scores": self.scores,
        }

    @cached_property
    def student(self) -> StoredFolder:
        """The trained student's folder."""
        return self._with_provenance(self.distillation.student_folder())

    @cached_property
    def _learned_config(self) -> AlmConfig:
        """The configuration of the training: of completions and of marked messages only answers are learned.

        Of a mixture, each source has its own way, which is known by its examples' name.
        """
        if self.config.is_mixture:
            return self.config
        if not (learns_completions(self.examples) or learns_marked(self.examples)):
            return self.config
        objective = self.config.objective.model_copy(update={"assistant_only": True})
        return self.config.model_copy(update={"objective": objective})

    @cached_property
    def distillation(self) -> "Distillation":
        """What the student is made from."""
        from alm_pipeline.training.distillation import Distillation

        weights = [source.weight for source in self.config.sources] or [1.0]
        return Distillation(
            self._learned_config,
            tuple(part._distilled_part(weight) for part, weight in zip(self.parts, weights, strict=True)),
            self.source,
            self.student_tokenizer,
        )

    def _distilled_part(self, weight: float) -> "DistilledPart":
        from alm_pipeline.training.distillation import DistilledPart

        objective = self._learned_config.objective
        return DistilledPart(self.name, self.caches, self.teacher, objective, weight, self.stored_pair_biases)

    def preflight(
        self, phases: Collection[Phase] = ALL_PHASES, here: Collection[Phase] | None = None
    ) -> "list[Finding]":
        """Return, within seconds and before any stage, what would stop a run of these phases or make it useless.

        `here` is what of it this machine does (None: all of it). What is opened for this is used by the stages.
        """
        from alm_pipeline.preflight.checks.registry import preflight
        from alm_pipeline.preflight.findings import of_source

        if not self.config.is_mixture:
            return preflight(self._inputs(), phases, here)
        found = [
            of_source(finding, source)
            for part, source in zip(self.parts, self.config.sources, strict=True)
            for finding in preflight(part._inputs(), phases, here)
        ]
        return list(dict.fromkeys(found))  # what is wrong with the student is found for each source

    def require_ready(self, phases: Collection[Phase] = ALL_PHASES, here: Collection[Phase] | None = None) -> None:
        """Make the preflight once: raise one UserError with all of its errors, and log its warnings.

        A run whose result is finished has nothing to do, so nothing stops it.
        """
        from alm_pipeline.preflight.findings import not_ready

        if self._ready.issuperset(phases):
            return
        findings = self.preflight(phases, here)
        if findings and self._is_finished(phases):
            return
        for found in findings:
            if found.severity == "warning":
                _log.warning("%s", found.sentence_with_field)
        if any(found.severity == "error" for found in findings):
            raise not_ready(findings)
        self._ready.update(phases)

    def require_examples(self) -> None:
        """Raise UserError if the aligned examples leave nothing to train or to evaluate on.

        Before the teacher scores; afterward the training itself reports it.
        """
        from alm_pipeline.preflight.stored_examples import require_examples

        for part in self.parts:
            if not part.scores.manifest():
                require_examples(part.caches, assistant_only=part._learned_config.objective.assistant_only)

    def _inputs(self) -> "RunInputs":
        from alm_pipeline.preflight.context import RunInputs

        return RunInputs(
            self.config,
            self.root,
            self.teacher,
            self.source,
            lambda: self.named_tokenizer,
            self.student_template,
            lambda: self.corpus,
            self._nameable_caches,
        )

    def _nameable_caches(self) -> Mapping[str, Dataset] | None:
        """Return the caches; None while the student's tokenizer, which they are named by, has yet to be made."""
        made = self.made_tokenizer
        return None if made and not made.manifest() else self.caches

    def _is_finished(self, phases: Collection[Phase]) -> bool:
        """Whether the last of these phases has nothing to do."""
        kind = "students" if "train" in phases else Kind.TEACHER_SCORES
        try:
            # first the listing: to know the name of the result takes hashing the corpus
            if not list_folders(join_url(self.root, kind)):
                return False
            if "train" not in phases:
                return all(part.scores.manifest() is not None for part in self.parts)
            return self.student.manifest() is not None and not self.student.is_to_be_replaced
        except UserError:
            return False

    def shard(self) -> Manifest:
        """Read the corpus and write its examples in shards.

        Raises UserError if texts are cut by a student's tokenizer that the run has not made yet, or if its context
        leaves no room for a text.
        """
        if manifest := self.examples.manifest():
            return manifest
        filtered = self._filter() if self.decisions else None
        with self.examples.being_written(), single_threaded_calls():
            return write_examples(self.examples, self.corpus, self._token_limit(), filtered)

    def compare(self) -> Manifest | None:
        """Write the signatures of the corpus's documents, if some are left out for what they contain."""
        if not self.signatures:
            return None
        with self.signatures.being_written():
            return write_signatures(self.signatures, self.corpus)

    def decide(self) -> Manifest | None:
        """Decide which documents are left out; what they are compared with is written first."""
        if not (self.signatures and self.decisions):
            return None
        if manifest := self.decisions.manifest():
            return manifest
        before = self._compared_before()
        for part in (*before, self):
            part.compare()
        earlier = {part.name: part.signatures for part in before if part.signatures}
        with self.decisions.being_written():
            return write_decisions(self.decisions, self.signatures, earlier)

    def _filter(self) -> DocumentFilter:
        self.decide()
        assert self.decisions
        return partial(kept_documents, self.decisions)

    def _token_limit(self) -> TokenLimit | None:
        length, tokenizer = self.source.context_length, self.student_tokenizer if self.cuts_by_tokens else None
        if length is None or tokenizer is None:
            return None
        check_same(tokenizer.name, tokenizer.identity, self.examples.identity["tokenizer"], self.examples.name)
        return TokenLimit(length, ByteEncoder(tokenizer))

    def train_tokenizer(self) -> FolderManifest | None:
        """Make the student's new tokenizer, if the configuration asks for one and it does not exist yet.

        Raises UserError when its embeddings could not be made, or no student can be made of its model: that is better
        known now than after scoring.
        """
        from alm_pipeline.transfer.initialization import Initialization

        self.source.refuse_adapter()
        Initialization.of(self.config.student).require_source(self.source)
        setting, source = self.config.student.tokenizer, self.source_tokenizer
        if setting is None:
            return None
        refuse_other_tables(self.source.load_config(), self.source.name)
        if not self.made_tokenizer:
            return None
        if isinstance(setting, TrainedTokenizer) or setting == BYTES:
            return write_tokenizer(self.made_tokenizer, self._corpora, setting, source)
        assert self.named_tokenizer
        return write_exchanged(self.made_tokenizer, self.named_tokenizer, source)

    def tokenize(self, side: Side, shards: Sequence[int] | None = None) -> Manifest | None:
        """Encode the examples with one side's tokenizer, or only the shards given.

        Raises UserError when many of the tokenizer's tokens have no row in its model's embedding: that is better known
        now than after scoring.
        """
        rows, limit = self._embedding_rows(side), self._max_tokens(side)
        tokens = self.tokens(side)
        with tokens.being_written():
            tokenizer, title = self.tokenizer(side), f"tokenize {side}"
            return tokenize(self.examples, tokens, tokenizer, limit, shards, rows, self._encoders, title)

    def align(self, shards: Sequence[int] | None = None) -> Manifest | None:
        """Align both tokenizations, or only the shards given."""
        with self.alignments.being_written():
            edges = SideEdges(*map(self._edges, _SIDES))
            return align_datasets(self.tokens("teacher"), self.tokens("student"), self.alignments, edges, shards)

    def _edges(self, side: Side) -> Edges:
        """Return what is known of the edges of a side's tokens, whose dataset may be named by another process."""
        tokenizer, tokens = self.tokenizer(side), self.tokens(side)
        check_same(tokenizer.name, tokenizer.identity, tokens.identity["tokenizer"], tokens.name)
        return token_edges(tokenizer.view)

    def pair_biases(self) -> FolderManifest | None:
        """Compute the tokenization biases of the pairs of tokens at the ends of chunks, if the chunking needs them."""
        if not self.stored_pair_biases:
            return None
        tokens = {f"{side}_tokens": self.tokens(side) for side in _SIDES}
        tokenizers = (self.tokenizer(side) for side in _SIDES)
        return write_pair_biases(self.stored_pair_biases, {**tokens, "alignments": self.alignments}, *tokenizers)

    def score(self, shards: Sequence[int] | None = None) -> Manifest | None:
        """Score the teacher's tokens, or only the shards given."""
        from alm_pipeline.scoring.stage import score

        with self.scores.being_written():
            manifest = score(self.tokens("teacher"), self.scores, self.teacher, self.config.score, shards)
        give_back_memory()
        return manifest

    def train(self) -> FolderManifest:
        """Train, evaluate and save the student, in several processes if the configuration asks for it.

        Its report is written beside it.
        """
        from alm_pipeline.student_report.page import write_run_report
        from alm_pipeline.training.parallel.launch import train_in_processes
        from alm_pipeline.training.parallel.processes import local_process_count, this_process
        from alm_pipeline.training.stage import train

        is_new = self.student.is_to_be_replaced or not self.student.manifest()
        if this_process().count == 1 and is_new:
            count = local_process_count(self.config.train)
            if count > 1:
                train_in_processes(self.config, self.root, count)
        manifest = train(self.distillation, self.student)
        give_back_memory()
        if this_process().is_first:
            write_run_report(self.student.url, is_new=is_new)
        return manifest

    def publish(self) -> str | None:
        """Push the finished student to the hub, if the configuration asks for it; return its URL there."""
        from alm_pipeline.training.student.publish import push

        setting = self.config.publish
        return push(self.student, setting.repo, setting.private) if setting else None

    def cache(self) -> None:
        """Run every stage up to the teacher's scores. Raises UserError as `require_ready` does."""
        self.require_ready(("prepare", "score"))
        self._prepare()
        self._score_parts()

    def _prepare(self) -> None:
        self.train_tokenizer()
        for part in self.parts:
            part.shard()
            part.tokenize("teacher")
            part.tokenize("student")
            part.align()
            part.pair_biases()

    def _score_parts(self) -> None:
        for part in self.parts:  # one after another: two teachers are never in memory together
            part.score()

    def run(self) -> FolderManifest:
        """Run every stage. Raises UserError as `require_ready` does."""
        self.require_ready()
        self._prepare()
        self.require_examples()
        self._score_parts()
        manifest = self.train()
        self.publish()
        return manifest


def _is_compared(part: Pipeline) -> bool:
    """Whether a source is compared with the others of its mixture."""
    return bool((deduplicate := part.config.texts.deduplicate) and deduplicate.across)
