"""The compiled sum of lengths between places, which takes a fraction of the time of NumPy's cumulated sum.

Importing numba takes seconds, so the function that runs this module imports it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.integer[Any]]


@njit(cache=True, nogil=True)
def sum_before(values: Ints, places: Ints, sums: Ints) -> None:
    """Write the sum of the values before each of the places [P], which ascend and are at most the number of values."""
    total, at = np.int64(0), 0
    for k in range(len(places)):
        part = np.int64(0)
        for index in range(at, places[k]):
            part += values[index]
        total += part
        at = places[k]
        sums[k] = total
