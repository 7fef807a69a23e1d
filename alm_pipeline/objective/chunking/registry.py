"""Every chunking in one table: what it needs, and how its chunks are found.

A new chunking is a name in `config.objective.Chunking`, an entry in `CHUNKINGS` and, where it looks at tokens, a class
in `ends`. Everything else (the stages, the readers of the caches) asks this table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alm_pipeline.config import Chunking, ObjectiveConfig
from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks
from alm_pipeline.objective.chunking.ends import Bools, ChunkEnds, PairBiasEnds, SideTokens
from alm_pipeline.objective.chunking.merging import merged_chunks
from storage.schemas import ChunkEnd, ChunkKind

if TYPE_CHECKING:  # it imports transformers and tokenizers, which readers of the caches do without
    from alm_pipeline.objective.chunking.pair_bias import PairBiases


@dataclass(frozen=True)
class EndSources:
    """Everything that the ends of chunks can be looked up from."""

    gamma: float
    read_pair_biases: Callable[[], "PairBiases"]


@dataclass(frozen=True)
class ChunkingRule:
    """What a chunking needs. One that needs nothing merges nothing: every chunk of the alignment stays as it is."""

    merges_by_scores: bool = False
    """chunks are merged until the teacher's probability of a boundary exceeds γ"""
    closes: Callable[[AlignedScores], Bools] | None = None
    """[chunks] whether each chunk may be the last of a merged one, from what is stored of it"""
    falls_back: bool = False
    """far from an end that `closes` allows, chunks end by γ"""
    find_ends: Callable[[EndSources], ChunkEnds] | None = None
    """looks up from tokens where chunks may end"""
    needs_pair_biases: bool = False
    """`find_ends` reads the stored biases of token pairs"""

    @property
    def reads_gamma(self) -> bool:
        return self.merges_by_scores or self.falls_back or self.needs_pair_biases

    @property
    def looks_at_tokens(self) -> bool:
        return self.find_ends is not None


def _closes_before_boundary(scores: AlignedScores) -> Bools:
    """Chunks end where the next token on both sides begins with white space or is special, and at paired chunks."""
    closes: Bools = (scores.ends & np.uint8(ChunkEnd.BOUNDARY) > 0) | (scores.kinds == ChunkKind.PAIRED)
    return closes


def _pair_bias_ends(sources: EndSources) -> PairBiasEnds:
    return PairBiasEnds(sources.read_pair_biases(), sources.gamma)


CHUNKINGS: dict[Chunking, ChunkingRule] = {
    "boundary": ChunkingRule(merges_by_scores=True),
    "unconstrained": ChunkingRule(),
    "space": ChunkingRule(closes=_closes_before_boundary),
    "anchor": ChunkingRule(closes=AlignedScores.words_end, falls_back=True),
    "pair_bias": ChunkingRule(find_ends=_pair_bias_ends, needs_pair_biases=True),
}


def chunk_ends(objective: ObjectiveConfig, read_pair_biases: Callable[[], "PairBiases"]) -> ChunkEnds | None:
    """Where chunks may end; None for a chunking that does not look at tokens.

    `read_pair_biases` is called only for a chunking that needs them.
    """
    find_ends = CHUNKINGS[objective.chunking].find_ends
    if find_ends is None:
        return None
    return find_ends(EndSources(objective.gamma, read_pair_biases))


def chunks_of(
    scores: AlignedScores,
    objective: ObjectiveConfig,
    teacher: SideTokens | None,
    student: SideTokens,
    ends: ChunkEnds | None,
) -> TeacherChunks:
    """The chunks that count, merged and debiased as configured.

    The teacher's tokens are needed only with `ends`, which is what `chunk_ends` returns. Raises ValueError where `ends`
    does not fit the chunking.
    """
    rule = CHUNKINGS[objective.chunking]
    if rule.looks_at_tokens != (ends is not None):
        looks = "looks" if rule.looks_at_tokens else "does not look"
        raise ValueError(
            f"the chunking {objective.chunking} {looks} at tokens: pass the `ends` that `chunk_ends` returns"
        )
    gamma = objective.gamma if rule.merges_by_scores or rule.falls_back else None
    closes = rule.closes(scores) if rule.closes else None
    if ends:
        assert teacher is not None
        closes = ends.closes(teacher, student, scores.kinds)
    return merged_chunks(scores, debias=objective.debias, gamma=gamma, closes=closes)
