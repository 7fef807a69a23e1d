"""How many threads a process has work for."""

import os


def threads_at_once() -> int:
    """As many as OMP_NUM_THREADS says, as for the libraries below; otherwise one for each core that it may use.

    Of several processes on a machine each is given its share so, as torchrun, Dask and Ray do.
    """
    given = (os.environ.get("OMP_NUM_THREADS") or "").split(",")[0]  # a number for each level of nesting
    return int(given or len(os.sched_getaffinity(0)))
