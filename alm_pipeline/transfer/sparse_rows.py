"""Sparse matrices by rows."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Rows(NamedTuple):
    """Sparse rows: row k has the columns ids[starts[k]:starts[k + 1]], and as many weights."""

    starts: Ints
    ids: Ints
    weights: Floats
