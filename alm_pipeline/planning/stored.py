"""What a store has of a pipeline's stages."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count

from alm_pipeline.objective.chunking.registry import CHUNKINGS
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.plan import STAGES, Stage
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.folders import CHECKPOINTS, FolderManifest, StoredFolder


@dataclass(frozen=True)
class StoredStage:
    """A stage's dataset or folder, complete or not; None if it has no name before the tokenizer is made."""

    stored: Dataset | StoredFolder | None

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest of a dataset that is complete."""
        return self.stored.manifest() if isinstance(self.stored, Dataset) else None

    @cached_property
    def _folder_manifest(self) -> FolderManifest | None:
        return self.stored.manifest() if isinstance(self.stored, StoredFolder) else None

    @cached_property
    def is_complete(self) -> bool:
        if isinstance(self.stored, StoredFolder) and self.stored.is_to_be_replaced:
            return False
        return bool(self.manifest or self._folder_manifest)

    @cached_property
    def is_begun(self) -> bool:
        """Whether a training has left checkpoints, from which it goes on."""
        return isinstance(self.stored, StoredFolder) and not self.is_complete and self.stored.has(CHECKPOINTS)

    @property
    def bytes(self) -> int | None:
        """What it takes in the store; None if it is not complete."""
        if self._folder_manifest:
            return sum(self._folder_manifest.sizes.values())
        return self.manifest.bytes if self.manifest else None

    def count(self, name: str) -> int | None:
        """Return a count of the manifest; None if it is not complete."""
        return self.manifest.counts[name] if self.manifest else None

    def shards_done(self, shards: int | None) -> int:
        """Return how many shards are written; `shards` is how many there will be, if that is known."""
        if self.manifest:
            return len(self.manifest.shards)
        if not isinstance(self.stored, Dataset):
            return 0
        if shards is not None:
            return shards - len(self.stored.missing(range(shards)))
        recorded = self.stored.recorded()
        return next(shard for shard in count() if shard not in recorded)


def stored_stages(pipeline: Pipeline, *, with_student: bool) -> dict[Stage, StoredStage]:
    """Return what there is of each stage that a run has, in the run's order."""
    find: dict[Stage, Callable[[], Dataset | StoredFolder | None]] = {
        "train tokenizer": lambda: pipeline.made_tokenizer,
        "shard": lambda: pipeline.examples,
        "tokenize teacher": lambda: pipeline.tokens("teacher"),
        "tokenize student": lambda: pipeline.tokens("student"),
        "align": lambda: pipeline.alignments,
        "pair biases": lambda: pipeline.stored_pair_biases,
        "score": lambda: pipeline.scores,
        "train": lambda: pipeline.student,
    }
    left_out = set[Stage]()
    if pipeline.made_tokenizer is None:
        left_out.add("train tokenizer")
    if not CHUNKINGS[pipeline.config.objective.chunking].needs_pair_biases:
        left_out.add("pair biases")
    if not with_student:
        left_out.add("train")
    is_unmade = pipeline.made_tokenizer is not None and not pipeline.made_tokenizer.manifest()
    return {stage: StoredStage(_found(find[stage], is_unmade)) for stage in STAGES if stage not in left_out}


def _found(find: Callable[[], Dataset | StoredFolder | None], is_unmade: bool) -> Dataset | StoredFolder | None:
    try:
        return find()
    except UserError:
        if is_unmade:  # it is named by the tokenizer that the run makes first
            return None
        raise
