"""The processes that train one student together: which one this is, and how they exchange values.

`torchrun` and `accelerate launch` set the environment variables that this module reads. The first process does what is
done once: it holds the lease, evaluates, and writes the checkpoints and the student. The others wait for it without
using a GPU.
"""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from alm_pipeline.config import TrainConfig
from storage.errors import UserError

_log = logging.getLogger(__name__)
Value = TypeVar("Value")
# the others wait while the first one evaluates, uploads, or waits for another run's lease. If a process dies, torchrun
# notices it and ends the rest
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    """One of `count` processes, `local_count` of them on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_on_many_machines(self) -> bool:
        return self.count > self.local_count

    @property
    def leads_another_machine(self) -> bool:
        """Whether it is the first process of its machine, and the first of all is on another machine."""
        return self.is_on_many_machines and self.local_rank == 0 and self.rank > 0


def this_process() -> Process:
    """Return the process that the environment describes, or the only process if it describes none."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names[:3]):
        return Process()
    defaults = {"LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}
    return Process(*(int(os.environ.get(name) or defaults[name]) for name in names))


@contextmanager
def joined_processes() -> Iterator[Process]:
    """Bind this process to its GPU and connect it with the others: gloo between CPUs, NCCL between GPUs."""
    process = this_process()
    if torch.cuda.is_available():
        torch.cuda.set_device(process.local_rank)
    torch.distributed.init_process_group(timeout=_TIMEOUT)
    yield process
    # not after an error: the others may be in the middle of a collective operation
    torch.distributed.destroy_process_group()


def local_process_count(config: TrainConfig) -> int:
    """Return how many processes this machine trains with. Raises UserError if they can't share a step equally."""
    if config.processes is not None:
        check_equal_shares(config, config.processes)
        return config.processes
    gpus = max(1, torch.cuda.device_count())
    count = max(count for count in range(1, gpus + 1) if config.accumulation % count == 0)
    if count < gpus:
        _log.warning(
            "train.accumulation %d: the batches of a step use %d of %d GPUs: a multiple of %d uses all of them",
            config.accumulation, count, gpus, gpus,
        )  # fmt: skip
    return count


def batches_per_process(config: TrainConfig) -> int:
    """Return how many batches of a step this process computes. Raises UserError if the shares are not equal."""
    check_equal_shares(config, this_process().count)
    return config.accumulation // this_process().count


def check_equal_shares(config: TrainConfig, processes: int) -> None:
    """Raise UserError if the processes can't share the batches of a step equally."""
    if config.accumulation % processes:
        raise UserError(
            f"train.accumulation: {config.accumulation} batches per step can't be shared equally by {processes} "
            f"processes: use a multiple of {processes}, or change train.processes"
        )


def broadcast_from_first(value: Value) -> Value:
    """Return the first process's value in every process. The others wait for it, and their `value` is ignored."""
    if this_process().count == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def gather_to_first(value: Value) -> list[Value]:
    """Return the values of all processes, in the order of ranks, in the first process; [] in the others."""
    process = this_process()
    if process.count == 1:
        return [value]
    values: list[Value] | None = [value] * process.count if process.is_first else None
    torch.distributed.gather_object(value, values)
    return values or []


def wait_for_all() -> None:
    """Wait until every process has called this function."""
    if this_process().count > 1:
        torch.distributed.all_gather_object([None] * this_process().count, None)


def free_gpu_memory() -> None:
    """Release cached GPU memory, such as a scored teacher's: other processes are about to use the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
