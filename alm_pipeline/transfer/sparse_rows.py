"""Sparse matrices by rows."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class SparseRows(NamedTuple):
    """Sparse rows: row k has the columns ids[starts[k]:starts[k + 1]], each with a weight."""

    starts: Ints
    ids: Ints
    weights: Floats
