"""Memory that is free goes back to the system."""

import ctypes
import sys
from pathlib import Path

import pytest

from alm_pipeline.runtime.memory import give_back_memory

_BLOCK = 100_000
"""bytes; larger blocks than 128 kB are not of the heap"""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_what_is_free_below_something_that_is_used_goes_back() -> None:
    blocks = [bytearray(b"x") * _BLOCK for _ in range(2000)]
    used = bytearray(b"x") * _BLOCK  # at the heap's end, which glibc would shrink by itself
    del blocks
    before = resident()
    give_back_memory()
    assert before - resident() > 100 * 2**20
    assert used
