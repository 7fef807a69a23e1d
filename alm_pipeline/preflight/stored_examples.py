"""What is known of the examples once both tokenizations are aligned, before the teacher scores: the costly stage."""

from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc

from alm_pipeline.evaluation.held_out import require_held_out
from alm_pipeline.training.data.batch_stream import nothing_to_train_on
from storage.dataset import Dataset, read_aligned
from storage.errors import UserError

_COLUMNS = {"examples": ("split",), "alignments": ("kinds",)}


def require_examples(caches: Mapping[str, Dataset]) -> None:
    """Raise UserError, as training would, if no example is left to train on, or none to evaluate on.

    `caches` are the datasets by role, as `Pipeline.caches`; the scores need not be there. Reads shards until it has
    found both, so in general one.
    """
    require_held_out(caches)
    datasets = {role: caches[role] for role in _COLUMNS}
    for shard in range(len(caches["alignments"].complete_manifest().shards)):
        tables = read_aligned(datasets, shard, _COLUMNS)
        trained = pc.equal(tables["examples"]["split"], "train").to_numpy()
        if np.any(trained & (pc.list_value_length(tables["alignments"]["kinds"]).to_numpy() > 0)):
            return
    raise UserError(nothing_to_train_on(caches["examples"]))
