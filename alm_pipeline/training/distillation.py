"""Everything that a student is made from, as one object."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.config import TOP_TERMS, AlmConfig, ObjectiveConfig
from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.baselines.mined_mapping import mined_mapping, same_bytes_mapping
from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.objective.chunking.pair_bias import PairBiases
from alm_pipeline.objective.chunking.pair_bias_stage import read_pair_biases
from alm_pipeline.objective.chunking.registry import CHUNKINGS, chunk_ends
from alm_pipeline.objective.prefix_arrays import PrefixTable
from alm_pipeline.objective.prefix_table import prefix_table
from alm_pipeline.training.data.mixture import TrainingSource, whole_shares
from alm_pipeline.training.model.live_teacher import LiveTeacher, TokenMapping
from alm_pipeline.training.model.terms import needed_mappings
from alm_pipeline.training.parallel.processes import broadcast_from_first, this_process
from alm_pipeline.transfer.bytes.byte_model import put_on_bytes
from alm_pipeline.transfer.carry_over import end_with_turns
from alm_pipeline.transfer.fvt import special_counterparts
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.transfer.level.level import FoundLevel, apply_level, set_level
from alm_pipeline.transfer.level.texts import training_texts
from alm_pipeline.transfer.swap import TransferResult, swap_tokenizer
from storage.dataset import Dataset
from storage.errors import UserError
from storage.folders import StoredFolder

STAGE_VERSION = 6


class InitialStudent(NamedTuple):
    """A student before training."""

    model: PreTrainedModel
    counts: dict[str, int]
    """of embedding rows by how they were made; empty if it keeps its tokenizer"""
    level: FoundLevel | None
    """of its new tokens, if it has any and the level is not left as it is"""

    def results(self) -> dict[str, Any]:
        """Return what the student's manifest says of it."""
        return {"initialization": self.counts} | ({"level": self.level.record()} if self.level else {})


def require_top(config: AlmConfig) -> None:
    """Raise UserError if a term needs the teacher's likeliest tokens and its scores are made without them."""
    if config.objective.needs_top and not config.score.top_k:
        terms = ", ".join(term for term in config.objective.terms if term in TOP_TERMS)
        raise UserError(
            f"score.top_k: is 0, and the term {terms} of objective.terms compares the student with the teacher's "
            "likeliest tokens: set it to 16, which scores the texts again, or leave the term out"
        )


@dataclass(frozen=True)
class DistilledPart:
    """A source of texts with its teacher: the corpus, or one of several in a mixture."""

    name: str
    """the corpus's"""
    caches: Mapping[str, Dataset]
    """the datasets by role, as `Pipeline.caches`"""
    teacher: ModelReference
    objective: ObjectiveConfig
    """as it applies to these texts: of completions and marked messages, only answers are learned"""
    weight: float = 1.0
    """relative to the other sources'"""
    stored_pair_biases: StoredFolder | None = None
    """of the chunking that uses them"""

    def inputs(self) -> dict[str, str]:
        """Return the names of what is read, by role."""
        biases = {"pair_biases": self.stored_pair_biases.name} if self.stored_pair_biases else {}
        return {role: dataset.name for role, dataset in self.caches.items()} | biases

    def chunk_ends(self) -> ChunkEnds | None:
        """Return where chunks may end, for a chunking that looks at tokens."""
        if not CHUNKINGS[self.objective.chunking].looks_at_tokens:
            return None
        return chunk_ends(self.objective, self._read_pair_biases)

    def _read_pair_biases(self) -> PairBiases:
        assert self.stored_pair_biases
        return read_pair_biases(self.stored_pair_biases)


@dataclass(frozen=True)
class Distillation:
    """A configuration with the caches, models and tokenizers that it names."""

    config: AlmConfig
    parts: tuple[DistilledPart, ...]
    """the sources of a mixture; otherwise a single one"""
    source: ModelReference
    """the student's model before it gets its tokenizer"""
    tokenizer: LoadedTokenizer
    """the student's"""

    @property
    def teacher(self) -> ModelReference:
        """The only teacher, or the first source's."""
        return self.parts[0].teacher

    @property
    def datasets(self) -> dict[str, Dataset]:
        """All datasets by role; those of a mixture begin with their source's name."""
        if not self.config.is_mixture:
            return dict(self.parts[0].caches)
        return {f"{part.name}: {role}": dataset for part in self.parts for role, dataset in part.caches.items()}

    def _inputs(self) -> dict[str, Any]:
        """Return what the identity says of the data. Weights, and the order of sources, are the student's alone."""
        if not self.config.is_mixture:
            return {"inputs": self.parts[0].inputs()}
        shares = whole_shares([part.weight for part in self.parts]).tolist()
        return {
            "inputs": {f"{part.name}: {role}": name for part in self.parts for role, name in part.inputs().items()},
            "shares": [[part.name, share] for part, share in zip(self.parts, shares, strict=True)],
        }

    def student_folder(self) -> StoredFolder:
        """Return the student that this makes, whether or not it exists yet."""
        config, student = self.config, self.config.student
        identity = {
            "stage_version": STAGE_VERSION,
            **self._inputs(),
            "model": self.source.identity,
            "generation_config": self._generation_config,
            "source_tokenizer": self.source.tokenizer.identity,
            "tokenizer": self.tokenizer.identity,
            "saved_tokenizer": self.tokenizer.saved_identity,
            **({} if self._keeps_tokenizer else {"initialization": self._initialization.identity()}),
            **({"byte_level": {"ngram_embeddings": student.ngram_embeddings}} if student.is_byte_level else {}),
            # what is learned of the turns is in the alignments' name
            "objective": config.objective.model_dump(mode="json", exclude={"learn", "learned_turns"}),
            "train": config.train.identity(),
        }
        if evaluation := config.evaluation.identity():
            identity["evaluation"] = evaluation
        teachers = "+".join(dict.fromkeys(part.teacher.label for part in self.parts))
        name = f"{self._source_label}-from-{teachers}-on-{config.corpus_name}"
        return StoredFolder(self.parts[0].caches["scores"].root, "students", name, identity)

    @property
    def _source_label(self) -> str:
        """The label of the student's model; in rounds that of the first, since names would grow with each."""
        label = self.source.label
        return label.partition("-from-")[0] if "-round-" in self.config.corpus_name else label

    @cached_property
    def _initialization(self) -> Initialization:
        # one object, so that the donor that is loaded is the one that the student is named by
        initialization = Initialization.of(self.config.student, trust_remote_code=self.source.trust_remote_code)
        initialization.require_source(self.source)
        return initialization

    @property
    def _keeps_tokenizer(self) -> bool:
        return self.tokenizer.name == self.source.name

    @cached_property
    def _generation_config(self) -> str | None:
        return self.source.generation_config_hash()

    def check_unchanged(self) -> None:
        """Raise UserError if a model or tokenizer was changed since the student was named by it.

        A teacher that training only reads scores of is not checked: it may be gone by then.
        """
        teacher = self.teacher if self.config.objective.is_live else None
        donor = None if self._keeps_tokenizer else self._initialization.donor
        for model in filter(None, (teacher, self.source, donor)):
            model.check_unchanged()
            model.tokenizer.check_unchanged()
        self.tokenizer.check_unchanged()
        if self.source.generation_config_hash() != self._generation_config:
            raise UserError(
                f"{self.source.name}: its generation_config.json was changed while it was in use, and the student gets "
                "a copy of it: run again"
            )

    @cached_property
    def held_out_parts(self) -> dict[str, HeldOut]:
        """Each source's held-out examples, by its name. Raises UserError when one has none."""
        most, top = self.config.evaluation.max_examples, self.config.objective.needs_top
        share = most and -(-most // len(self.parts))
        return {part.name: HeldOut.read(part.caches, share, top=top) for part in self.parts}

    @property
    def held_out(self) -> HeldOut:
        """The held-out examples of a single corpus, or of the first source."""
        return self.held_out_parts[self.parts[0].name]

    @property
    def weights(self) -> dict[str, float]:
        """Each source's share of the examples that are trained on."""
        total = sum(part.weight for part in self.parts)
        return {part.name: part.weight / total for part in self.parts}

    @cached_property
    def training_sources(self) -> tuple[TrainingSource, ...]:
        """What the training reads of each source."""
        return tuple(
            TrainingSource(part.name, part.caches, part.weight, part.chunk_ends(), self._prefixes(part.teacher))
            for part in self.parts
        )

    @property
    def chunk_ends(self) -> ChunkEnds | None:
        """Where chunks may end in a single corpus, for a chunking that looks at tokens."""
        return self.training_sources[0].ends

    @property
    def prefixes(self) -> PrefixTable | None:
        """The prefixes of both vocabularies of a single corpus, for terms that compare next tokens."""
        return self.training_sources[0].prefixes

    def _prefixes(self, teacher: ModelReference) -> PrefixTable | None:
        """Return the prefixes of both vocabularies, for terms that compare next tokens.

        Takes a second if they are large; teachers with the same tokenizer share them. Raises UserError if the scores
        are without the likeliest tokens, or the tokens of a side without white space.
        """
        if not self.config.objective.needs_top:
            return None
        require_top(self.config)
        tables: dict[str, PrefixTable] = self.__dict__.setdefault("_prefix_tables", {})
        identity = teacher.tokenizer.identity
        if identity not in tables:
            specials = special_counterparts(self.tokenizer.fast, teacher.tokenizer.fast)
            rows = self.source.vocabulary_rows if self._keeps_tokenizer else None
            tables[identity] = prefix_table(teacher.tokenizer.view, self.tokenizer.view, specials, rows)
        return tables[identity]

    def initial_student(self) -> InitialStudent:
        """Load the student before training. Of several processes that train together, all call this."""
        self.source.refuse_adapter()
        model = self.source.load("float32")
        transferred = None if self._keeps_tokenizer else self._put_tokenizer(model)
        level = self._set_level(model, transferred) if transferred else None
        if self.config.student.template_name is not None:
            end_with_turns(model, self.tokenizer.fast)
        return InitialStudent(model, transferred.counts() if transferred else {}, level)

    def _set_level(self, model: PreTrainedModel, transferred: TransferResult) -> FoundLevel | None:
        """Lower the new tokens; the first process finds by how much, and the others follow it."""
        if this_process().is_first:
            level, texts = self.config.student.level, partial(training_texts, [part.caches for part in self.parts])
            return broadcast_from_first(set_level(model, transferred.new_V, texts, level))
        found: FoundLevel | None = broadcast_from_first(None)
        if found:
            apply_level(model, transferred.new_V, found)
        return found

    def _put_tokenizer(self, model: PreTrainedModel) -> TransferResult:
        config, seed = self.config.student, self.config.train.seed
        tokenizers, initialization = (self.source.tokenizer, self.tokenizer), self._initialization
        if config.is_byte_level:
            ngrams = config.ngram_embeddings
            return put_on_bytes(model, *tokenizers, initialization, ngram_embeddings=ngrams, seed=seed)
        return swap_tokenizer(model, *tokenizers, initialization, seed)

    def live_teacher(self) -> LiveTeacher | None:
        """Load the teacher, if a term of the objective needs it in training memory."""
        objective = self.config.objective
        if not objective.is_live:
            return None
        model = self.teacher.load(self.config.score.dtype)
        mappings = {kind: self._mapping(kind) for kind in needed_mappings(objective)}
        return LiveTeacher(model, HeadVocabulary.of(model, self.teacher.tokenizer).rows, mappings)

    def _mapping(self, kind: TokenMapping) -> Tensor:
        """The teacher's token for each of the student's. The nearest take minutes if vocabularies are large."""
        teacher, student, rows = self.teacher.tokenizer, self.tokenizer, self.teacher.vocabulary_rows
        pairs = special_counterparts(teacher.fast, student.fast).items()
        specials = {id_: teacher_id if teacher_id < rows else -1 for id_, teacher_id in pairs}
        mapping = mined_mapping if kind == "nearest" else same_bytes_mapping
        return torch.from_numpy(mapping(teacher.view.within(rows), student.view, specials))
