"""What is known of the examples once both tokenizations are aligned, before the teacher scores: the costly stage."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.evaluation.held_out import require_held_out
from alm_pipeline.training.data.batch_stream import nothing_to_train_on
from storage.columns import flatten_filled, flatten_lists
from storage.dataset import Dataset, read_aligned
from storage.errors import UserError
from storage.schemas import ChunkKind

_COLUMNS = {"examples": ("split",), "alignments": ("kinds", "assistant")}


def require_examples(caches: Mapping[str, Dataset], *, assistant_only: bool = False) -> None:
    """Raise UserError, as training would, if no example is left to train on, or none to evaluate on.

    `caches` are the datasets by role, as `Pipeline.caches`; the scores need not be there. Reads shards until it has
    found both, so in general one. With `assistant_only`, some chunk of a conversation has to be the assistant's.
    """
    require_held_out(caches)
    datasets = {role: caches[role] for role in _COLUMNS}
    for shard in range(len(caches["alignments"].complete_manifest().shards)):
        tables = read_aligned(datasets, shard, _COLUMNS)
        trained = pc.equal(tables["examples"]["split"], "train").to_numpy()
        if np.any(trained & _has_chunks(tables["alignments"], assistant_only)):
            return
    raise UserError(nothing_to_train_on(caches["examples"]))


def _has_chunks(alignments: pa.Table, assistant_only: bool) -> npt.NDArray[np.bool_]:
    """Return whether each example has a chunk, or one that is to be learned."""
    kinds, offsets = flatten_lists(alignments["kinds"])
    counted = np.ones(len(kinds), np.bool_)
    if assistant_only:
        counted = flatten_filled(alignments["assistant"], offsets, fill=True) & (kinds != ChunkKind.UNPAIRED)
    found: npt.NDArray[np.bool_] = np.diff(np.concatenate([[0], np.cumsum(counted)])[offsets]) > 0
    return found
