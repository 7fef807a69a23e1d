"""What only a GPU shows, in one run of under 8 minutes: `python -m benchmarks.device [--output FILE]`.

Checks the head, scoring and training on the GPU against float64 on the processor, and measures the head against fused
kernels' own cross-entropy, scoring against a bare forward pass, a training step against plain cross-entropy and against
a teacher in memory, attention, torch.compile, FSDP2 on one GPU, and the reader's share of a step. Models have random
weights, tokens are random numbers: nothing is downloaded, and neither Polars nor Prefect is imported.

Every section is a process of its own with its own time: one that fails, hangs or breaks the GPU's context is reported
with its error, and the others go on; so is one whose imports fail. The JSON file (--output, or $OUT/device.json) is
written after each line, and at the end comes a table. The exit status is 1 if a section failed or a number was wrong.
`--small` runs everything on a processor in seconds, so that the script is right when a GPU is at hand: its times mean
nothing.
"""

import os
import sys
import time

STARTED = time.monotonic()
"""what the whole run's time counts from, before torch is imported"""
SMALL = "--small" in sys.argv
# before torch and Triton are imported; a library that only asks for a GPU must not keep this process from forking
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
if SMALL:
    os.environ.update(OMP_NUM_THREADS="1", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
