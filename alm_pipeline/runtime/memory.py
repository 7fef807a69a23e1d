"""Memory that is free, given back to the system."""

import ctypes
import gc
from contextlib import suppress


def give_back_memory() -> None:
    """Give freed memory back to the system, once a model is not needed any more.

    glibc keeps what is free in its heap: gigabytes after a training. A process that trains one student after another
    grows by what does not fit into it again. Does nothing with a C library that has no such call.
    """
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
