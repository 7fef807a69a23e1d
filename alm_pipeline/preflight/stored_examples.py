"""What is known of the examples once both tokenizations are aligned, before the teacher scores: the costly stage."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.evaluation.held_out import HeldOutCheck
from alm_pipeline.training.data.batch_stream import nothing_to_train_on
from storage.columns import flatten_filled, flatten_lists
from storage.dataset import Dataset, read_aligned
from storage.errors import UserError
from storage.schemas import ChunkKind


def require_examples(caches: Mapping[str, Dataset], *, assistant_only: bool = False) -> None:
    """Raise UserError, as training would, if no example is left to train on, or none to evaluate on.

    `caches` are the datasets by role, as `Pipeline.caches`; the scores need not be there. Reads shards, each once,
    until both are found, so in general one. With `assistant_only`, some chunk has to be the assistant's.
    """
    held_out, is_trained = HeldOutCheck(), False
    datasets = {role: caches[role] for role in held_out.COLUMNS}
    for shard in range(len(caches["alignments"].complete_manifest().shards)):
        tables = read_aligned(datasets, shard, held_out.COLUMNS)
        held_out.see(tables)
        trained = pc.equal(tables["examples"]["split"], "train").to_numpy()
        is_trained |= bool(np.any(trained & _has_chunks(tables["alignments"], assistant_only)))
        if is_trained and held_out.is_passed:
            return
    held_out.require(caches)
    if not is_trained:
        raise UserError(nothing_to_train_on(caches))


def _has_chunks(alignments: pa.Table, assistant_only: bool) -> npt.NDArray[np.bool_]:
    """Return whether each example has a chunk, or one that is to be learned."""
    kinds, offsets = flatten_lists(alignments["kinds"])
    counted = np.ones(len(kinds), np.bool_)
    if assistant_only:
        counted = flatten_filled(alignments["assistant"], offsets, fill=True) & (kinds != ChunkKind.UNPAIRED)
    found: npt.NDArray[np.bool_] = np.diff(np.concatenate([[0], np.cumsum(counted)])[offsets]) > 0
    return found
