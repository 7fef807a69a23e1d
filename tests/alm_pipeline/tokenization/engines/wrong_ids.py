"""The ids of an engine that is wrong about some texts."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from alm_pipeline.tokenization.engines.flat_ids import FlatIds


def with_rows(flat: FlatIds, rows: Mapping[int, npt.NDArray[np.int32]]) -> FlatIds:
    """Return the ids with those of some texts replaced."""
    return FlatIds.of([rows.get(index, flat.row(index)).tolist() for index in range(len(flat))])
