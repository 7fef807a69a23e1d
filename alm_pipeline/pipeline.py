"""The stages in order, without Prefect: what a notebook calls, and what the flow's tasks call.

    from alm_pipeline.pipeline import Pipeline
    from alm_pipeline.config.recipes import recipe

    student = Pipeline(recipe("transfer"), "alm-data").run()
    print(student.results)

Every stage finds what is there and writes what is missing, so each may be called at any time, after those before it.
`tokenize`, `align` and `score` also take `shards`, so that several processes share the work: each shard needs only the
same shard of the stage before, and a last call without `shards` writes the manifest. What computes with torch is
imported by the stages that do: processes that tokenize and align start without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.config import BYTES, AlmConfig, CorpusConfig, TrainedTokenizer
from alm_pipeline.corpus.stage import examples_dataset, write_examples
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer, common_forms
from alm_pipeline.new_tokenizer.special_tokens import keeps_source
from alm_pipeline.new_tokenizer.stage import exchanged_folder, tokenizer_folder, write_exchanged, write_tokenizer
from alm_pipeline.objective.chunking.pair_bias_stage import pair_bias_folder, write_pair_biases
from alm_pipeline.provenance import provenance
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset, Manifest
from storage.folders import FolderManifest, StoredFolder

if TYPE_CHECKING:
    from alm_pipeline.training.distillation import Distillation

Side = Literal["teacher", "student"]
_SIDES: tuple[Side, Side] = ("teacher", "student")
Kept = TypeVar("Kept", Dataset, StoredFolder)


class Pipeline:
    """One configuration's datasets under one storage root (any fsspec URL)."""

    def __init__(self, config: AlmConfig, root: str) -> None:
        self.config, self.root = config, root
        self.teacher = ModelReference(config.teacher, config.trust_remote_code)
        """the teacher by name"""
        is_own_teacher = config.student.model == config.teacher
        self.source = self.teacher if is_own_teacher else ModelReference(config.student.model, config.trust_remote_code)
        """the student's model before it gets its tokenizer"""

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        return provenance(self.config)

    def _told(self, kept: Kept) -> Kept:
        """With what its manifest says of this run."""
        return replace(kept, provenance=self._provenance)

    @cached_property
    def _corpus(self) -> CorpusConfig:
        # a token covers at least one byte, so what has no more bytes than the context has tokens always fits;
        # a few are left for the special tokens around it. The teacher scores what is longer in windows
        length = self.source.context_length
        most = min(self.config.corpus.max_bytes, length - 8) if length else self.config.corpus.max_bytes
        return self.config.corpus.model_copy(update={"max_bytes": most, "normalize": self._forms()})

    def _forms(self) -> tuple[str, ...]:
        """The forms that texts are put into: NFC always, so that students with and without it share the caches."""
        setting = self.config.corpus.normalize
        if setting != "auto":
            return setting
        # a tokenizer that is made here takes texts as they are
        tokenizers = [self.teacher.tokenizer, *([self.named_tokenizer] if self.named_tokenizer else [])]
        return common_forms(tokenizers)

    @cached_property
    def examples(self) -> Dataset:
        return self._told(examples_dataset(self._corpus, self.root))

    @cached_property
    def made_tokenizer(self) -> StoredFolder | None:
        """The tokenizer that the run makes: trained, of bytes, or with the model's special tokens; None: as it is."""
        setting, source = self.config.student.tokenizer, self.source.tokenizer
        if isinstance(setting, TrainedTokenizer) or setting == BYTES:
            return self._told(tokenizer_folder(self._corpus, setting, source, self.root))
        named = self.named_tokenizer
        if setting is None or named is None:
            return None
        exchanges = keeps_source(source.fast, named.fast, self.config.student.special_tokens)
        return self._told(exchanged_folder(named, source, self.root)) if exchanges else None

    @cached_property
    def named_tokenizer(self) -> LoadedTokenizer | None:
        """The tokenizer that the configuration names for the student; None if it is made by the run."""
        setting = self.config.student.tokenizer
        if setting is None or setting == self.source.name:
            return self.source.tokenizer
        return LoadedTokenizer(setting) if isinstance(setting, str) and setting != BYTES else None

    @cached_property
    def student_tokenizer(self) -> LoadedTokenizer:
        """The student's tokenizer, which may have to be made first."""
        if self.made_tokenizer:
            return LoadedTokenizer(str(self.made_tokenizer.fetch()))
        assert self.named_tokenizer
        return self.named_tokenizer

    def tokenizer(self, side: Side) -> LoadedTokenizer:
        """A side's tokenizer; the student's may have to be made first."""
        return self.teacher.tokenizer if side == "teacher" else self.student_tokenizer

    def tokens(self, side: Side) -> Dataset:
        # kept, and so given to processes that share the work: they must not look at a tokenizer of their own
        kept: dict[Side, Dataset] = self.__dict__.setdefault("_tokens", {})
        if side not in kept:
            kept[side] = self._told(tokens_dataset(self.examples, self.tokenizer(side), self._max_tokens(side)))
        return kept[side]

    def _max_tokens(self, side: Side) -> int | None:
        """The student's context; the teacher scores what is longer than its own in windows."""
        return None if side == "teacher" else self.source.context_length

    @cached_property
    def alignments(self) -> Dataset:
        sides = self.tokens("teacher"), self.tokens("student")
        return self._told(alignments_dataset(*sides, self.config.corpus.name))

    @cached_property
    def stored_pair_biases(self) -> StoredFolder | None:
        """The biases of the pairs of tokens at chunks' ends, or None where the chunking asks for none."""
        if self.config.objective.chunking != "pair_bias":
            return None
        return self._told(pair_bias_folder(self.alignments, self.tokenizer("teacher"), self.tokenizer("student")))

    @cached_property
    def scores(self) -> Dataset:
        from alm_pipeline.scoring.stage import scores_dataset

        return self._told(scores_dataset(self.tokens("teacher"), self.teacher, self.config.score))

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
        return self._told(self.distillation.student_folder())

    @cached_property
    def distillation(self) -> "Distillation":
        """What the student is made from."""
        from alm_pipeline.training.distillation import Distillation

        return Distillation(
            self.config, self.caches, self.teacher, self.source, self.student_tokenizer, self.stored_pair_biases
        )

    def shard(self) -> Manifest:
        """Read the corpus, and write its examples in shards."""
        return write_examples(self.examples, self._corpus)

    def train_tokenizer(self) -> FolderManifest | None:
        """Make the student's new tokenizer, if the configuration asks for one that is not there.

        Raises UserError when its embeddings could not be made: better now than after scoring.
        """
        from alm_pipeline.transfer.initialization import Initialization

        Initialization.of(self.config.student)
        setting, source = self.config.student.tokenizer, self.source.tokenizer
        if not self.made_tokenizer or setting is None:
            return None
        if isinstance(setting, TrainedTokenizer) or setting == BYTES:
            return write_tokenizer(self.made_tokenizer, self._corpus, setting, source)
        assert self.named_tokenizer
        return write_exchanged(self.made_tokenizer, self.named_tokenizer, source)

    def tokenize(self, side: Side, shards: Sequence[int] | None = None) -> Manifest | None:
        """Encode the examples with one side's tokenizer, or these shards of them.

        Raises UserError when the tokenizer has ids that its model has no embedding for: better now than after scoring.
        """
        tokenizer, model = self.tokenizer(side), self.teacher if side == "teacher" else self.source
        rows = model.vocabulary_rows if tokenizer.name == model.name else None
        return tokenize(self.examples, self.tokens(side), tokenizer, self._max_tokens(side), shards, rows)

    def align(self, shards: Sequence[int] | None = None) -> Manifest | None:
        """Align both tokenizations, or these shards of them."""
        return align_datasets(self.tokens("teacher"), self.tokens("student"), self.alignments, shards)

    def pair_biases(self) -> FolderManifest | None:
        """Compute the tokenization bias of the pairs of tokens at chunks' ends, if the chunking asks for it."""
        if not self.stored_pair_biases:
            return None
        tokens = {f"{side}_tokens": self.tokens(side) for side in _SIDES}
        names = (self.tokenizer(side) for side in _SIDES)
        return write_pair_biases(self.stored_pair_biases, {**tokens, "alignments": self.alignments}, *names)

    def score(self, shards: Sequence[int] | None = None) -> Manifest | None:
        """Let the teacher score its tokens, or these shards of them."""
        from alm_pipeline.scoring.stage import score

        return score(self.tokens("teacher"), self.scores, self.teacher, self.config.score, shards)

    def train(self) -> FolderManifest:
        """Train, evaluate and save the student, in several processes where the configuration has it."""
        from alm_pipeline.training.parallel.launch import train_in_processes
        from alm_pipeline.training.parallel.processes import processes_here, this_process
        from alm_pipeline.training.stage import train

        if this_process().count == 1 and not self.student.manifest():
            count = processes_here(self.config.train)
            if count > 1:
                train_in_processes(self.config, self.root, count)
        return train(self.distillation, self.student)

    def publish(self) -> str | None:
        """Push the finished student to the hub, if the configuration asks for it; returns its URL there."""
        from alm_pipeline.training.student.publish import push

        setting = self.config.publish
        return push(self.student, setting.repo, setting.private) if setting else None

    def cache(self) -> None:
        """Every stage up to the teacher's scores."""
        self.shard()
        self.train_tokenizer()
        self.tokenize("teacher")
        self.tokenize("student")
        self.align()
        self.pair_biases()
        self.score()

    def run(self) -> FolderManifest:
        """Every stage."""
        self.cache()
        manifest = self.train()
        self.publish()
        return manifest
